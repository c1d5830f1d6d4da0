package main

import (
	"context"
	"encoding/binary"
	"net"

	"github.com/cloudwego/netpoll"
)

type receivedKey struct{}

// serveNetpoll is netpoll as it comes: a poller wakes a goroutine of its pool for each connection with input.
func serveNetpoll(s *service, pollers int) {
	must(netpoll.Configure(netpoll.Config{PollerNum: pollers}))
	listener, err := netpoll.CreateListener("tcp", "127.0.0.1:0")
	must(err)
	handle := func(ctx context.Context, connection netpoll.Connection) error {
		return handleStream(s, ctx, connection)
	}
	if s.name == "frame" {
		handle = handleFrames
	}
	loop, err := netpoll.NewEventLoop(handle, netpoll.WithOnPrepare(func(netpoll.Connection) context.Context {
		return context.WithValue(context.Background(), receivedKey{}, new(uint64))
	}))
	must(err)
	ready(listener.Addr().(*net.TCPAddr).Port)
	must(loop.Serve(listener))
}

func handleStream(s *service, ctx context.Context, connection netpoll.Connection) error {
	received := ctx.Value(receivedKey{}).(*uint64)
	reader := connection.Reader()
	bytes, err := reader.Next(reader.Len())
	if err != nil {
		return err
	}
	answer, taken := s.answer(*received, bytes)
	*received += uint64(taken)
	if len(answer) > 0 {
		if err := send(connection.Writer(), answer); err != nil {
			return err
		}
	}
	return reader.Release()
}

// handleFrames waits for the rest of a partial frame, as a handler of netpoll does, and sends all answers together.
func handleFrames(_ context.Context, connection netpoll.Connection) error {
	reader, writer := connection.Reader(), connection.Writer()
	for reader.Len() > 0 {
		header, err := reader.Peek(headerSize)
		if err != nil {
			return err
		}
		frame, err := reader.Next(headerSize + int(binary.BigEndian.Uint32(header)))
		if err != nil {
			return err
		}
		if _, err := writer.WriteBinary(frame); err != nil {
			return err
		}
	}
	if err := writer.Flush(); err != nil {
		return err
	}
	return reader.Release()
}

// send has sent all when it returns.
func send(writer netpoll.Writer, bytes []byte) error {
	if _, err := writer.WriteBinary(bytes); err != nil {
		return err
	}
	return writer.Flush()
}
