package main

import (
	"encoding/binary"
	"time"
)

const (
	headerSize  = 4
	requestSize = 8
	burnTime    = 20 * time.Microsecond
)

// service is what a server does with the bytes that come.
type service struct {
	name string
	// size of a request, a chunk or a body, if the service has such
	size uint64
	body []byte
}

func newService(name string, size uint64) *service {
	switch name {
	case "echo", "frame", "burn", "upload", "download":
	default:
		fail(name + " is no service")
	}
	s := &service{name: name, size: max(size, 1)}
	if name == "download" {
		s.body = make([]byte, size)
		for index := range s.body {
			s.body[index] = byte(index % 251)
		}
	}
	return s
}

// answer is what is to be sent for bytes, which come behind before others of their connection, and how many of them
// it is for. It may share the memory of bytes.
func (s *service) answer(before uint64, bytes []byte) (answer []byte, taken int) {
	after := before + uint64(len(bytes))
	switch s.name {
	case "frame":
		end := completeFrames(bytes)
		return bytes[:end], end
	case "burn":
		burn(after/s.size - before/s.size)
		return bytes, len(bytes)
	case "upload":
		for chunk := before/s.size + 1; chunk <= after/s.size; chunk++ {
			answer = binary.BigEndian.AppendUint64(answer, chunk*s.size)
		}
		return answer, len(bytes)
	case "download":
		return s.bodies(int(after/requestSize - before/requestSize)), len(bytes)
	default:
		return bytes, len(bytes)
	}
}

func (s *service) bodies(count int) []byte {
	if count == 1 {
		return s.body
	}
	var answer []byte
	for ; count > 0; count-- {
		answer = append(answer, s.body...)
	}
	return answer
}

// completeFrames tells how many of bytes, which begin with a frame (u32 big-endian length and body), belong to
// complete frames.
func completeFrames(bytes []byte) int {
	end := 0
	for len(bytes)-end >= headerSize {
		next := end + headerSize + int(binary.BigEndian.Uint32(bytes[end:]))
		if next > len(bytes) {
			break
		}
		end = next
	}
	return end
}

func burn(requests uint64) {
	for start := time.Now(); time.Since(start) < time.Duration(requests)*burnTime; {
	}
}
