package main

import (
	"net"
	"os"

	"github.com/panjf2000/gnet/v2"
)

// serveGnet is gnet with one event loop: handlers run on the thread that does the I/O.
func serveGnet(s *service) {
	must(gnet.Run(&gnetServer{service: s}, "tcp://127.0.0.1:0", gnet.WithNumEventLoop(1)))
}

type gnetServer struct {
	gnet.BuiltinEventEngine
	*service
}

func (g *gnetServer) OnBoot(engine gnet.Engine) gnet.Action {
	fd, err := engine.Dup()
	must(err)
	listener, err := net.FileListener(os.NewFile(uintptr(fd), "listener"))
	must(err)
	ready(listener.Addr().(*net.TCPAddr).Port)
	must(listener.Close())
	return gnet.None
}

func (g *gnetServer) OnOpen(connection gnet.Conn) ([]byte, gnet.Action) {
	connection.SetContext(new(uint64))
	return nil, gnet.None
}

func (g *gnetServer) OnTraffic(connection gnet.Conn) gnet.Action {
	before := connection.Context().(*uint64)
	bytes, err := connection.Peek(-1)
	if err != nil {
		return gnet.Close
	}
	answer, taken := g.answer(*before, bytes)
	*before += uint64(taken)
	if len(answer) > 0 {
		if _, err := connection.Write(answer); err != nil {
			return gnet.Close
		}
	}
	connection.Discard(taken)
	return gnet.None
}
