package main

import "net"

const readSize = 64 << 10

// serveNet is Go's net: a goroutine and a buffer for each connection.
func serveNet(s *service) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	ready(listener.Addr().(*net.TCPAddr).Port)
	for {
		connection, err := listener.Accept()
		must(err)
		go answerAll(s, connection)
	}
}

func answerAll(s *service, connection net.Conn) {
	defer connection.Close()
	buffer := make([]byte, readSize)
	before, held := uint64(0), 0
	for {
		if held == len(buffer) {
			buffer = append(buffer, make([]byte, len(buffer))...)
		}
		count, err := connection.Read(buffer[held:])
		if err != nil {
			return
		}
		held += count
		answer, taken := s.answer(before, buffer[:held])
		if len(answer) > 0 {
			if _, err := connection.Write(answer); err != nil {
				return
			}
		}
		before += uint64(taken)
		held = copy(buffer, buffer[taken:held])
	}
}
