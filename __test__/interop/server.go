package main

import (
	"context"
	"errors"
	"net"
	"runtime"

	"github.com/cloudwego/netpoll"
	"github.com/cloudwego/netpoll/mux"
)

// server answers as its scenario wants.
type server struct {
	scenario string
	report   *report
}

type queueKey struct{}

func serve(scenario string, report *report) {
	listener, err := netpoll.CreateListener("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	s := &server{scenario, report}
	options := []netpoll.Option{netpoll.WithOnPrepare(s.prepare), netpoll.WithReadTimeout(limit)}
	switch scenario {
	case "server-closes":
		options = append(options, netpoll.WithOnConnect(s.sendAndClose))
	case "client-leaves":
		options = append(options, netpoll.WithOnConnect(s.sendForever))
	}
	loop, err := netpoll.NewEventLoop(s.request, options...)
	if err != nil {
		panic(err)
	}
	write(map[string]int{"port": listener.Addr().(*net.TCPAddr).Port})
	go loop.Serve(listener)
	untilStdinEnds()
	report.untilClosed()
	ctx, cancel := context.WithTimeout(context.Background(), limit/3)
	defer cancel()
	report.fail(loop.Shutdown(ctx))
}

func (s *server) prepare(connection netpoll.Connection) context.Context {
	s.report.open()
	connection.AddCloseCallback(func(netpoll.Connection) error {
		s.report.close()
		return nil
	})
	if s.scenario == "mux" {
		return context.WithValue(context.Background(), queueKey{}, mux.NewShardQueue(mux.ShardSize, connection))
	}
	return context.Background()
}

func (s *server) request(ctx context.Context, connection netpoll.Connection) error {
	reader := connection.Reader()
	for reader.Len() > 0 {
		f, err := readFrame(reader)
		if err != nil {
			s.report.fail(err)
			return connection.Close()
		}
		s.report.received.add(f)
		s.answer(ctx, connection, f)
	}
	return nil
}

func (s *server) answer(ctx context.Context, connection netpoll.Connection, f frame) {
	switch s.scenario {
	case "client-closes":
		return
	case "mux":
		queue := ctx.Value(queueKey{}).(*mux.ShardQueue)
		s.report.sent.add(f)
		go func() {
			for turns := f.number % 7; turns > 0; turns-- {
				runtime.Gosched()
			}
			queue.Add(f.buffer)
		}()
	default:
		s.report.sent.add(f)
		s.report.fail(f.send(connection.Writer()))
	}
}

func (s *server) sendAndClose(ctx context.Context, connection netpoll.Connection) context.Context {
	for number := uint32(0); number < 200; number++ {
		f := newFrame(number, int(number)*500)
		s.report.sent.add(f)
		if err := f.send(connection.Writer()); err != nil {
			s.report.fail(errors.Join(errors.New("sending before the close"), err))
			break
		}
	}
	connection.Close()
	return ctx
}

// sendForever ends when the client has left.
func (s *server) sendForever(ctx context.Context, connection netpoll.Connection) context.Context {
	for number := uint32(0); newFrame(number, 64<<10).send(connection.Writer()) == nil; number++ {
	}
	connection.Close()
	return ctx
}
