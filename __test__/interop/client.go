package main

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/cloudwego/netpoll"
	"github.com/cloudwego/netpoll/mux"
)

const mib = 1 << 20

type client struct {
	address string
	report  *report
}

func runClient(scenario string, address string, report *report) {
	c := &client{address, report}
	scenarios := map[string]func(netpoll.Connection) error{
		"ping-pong":     c.pingPong,
		"large":         c.large,
		"mux":           c.mux,
		"client-closes": c.sendAndClose,
		"server-closes": c.readToEnd,
		"client-leaves": c.readAFew,
		"half-close":    c.halfClose,
	}
	connections := 1
	if scenario == "ping-pong" {
		connections = 4
	}
	var group sync.WaitGroup
	for range connections {
		group.Add(1)
		go func() {
			defer group.Done()
			report.fail(c.on(scenarios[scenario]))
		}()
	}
	group.Wait()
}

// on runs a scenario on a connection of its own, which it closes.
func (c *client) on(scenario func(netpoll.Connection) error) error {
	connection, err := netpoll.DialConnection("tcp", c.address, limit)
	if err != nil {
		return err
	}
	c.report.open()
	connection.AddCloseCallback(func(netpoll.Connection) error {
		c.report.close()
		return nil
	})
	connection.SetReadTimeout(limit)
	return errors.Join(scenario(connection), connection.Close())
}

func (c *client) pingPong(connection netpoll.Connection) error {
	for number := uint32(0); number < 1000; number++ {
		if err := c.exchange(connection, newFrame(number, int(number)*4)); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) large(connection netpoll.Connection) error {
	for number, size := range []int{1 * mib, 8*mib + 1, 32 * mib, 0, 4 * mib} {
		if err := c.exchange(connection, newFrame(uint32(number), size)); err != nil {
			return err
		}
	}
	return nil
}

// exchange sends a frame while it reads the answer, as a server may answer before it has all.
func (c *client) exchange(connection netpoll.Connection, f frame) error {
	c.report.sent.add(f)
	sent := make(chan error, 1)
	go func() { sent <- f.send(connection.Writer()) }()
	answer, err := c.receive(connection)
	if err != nil {
		return err
	}
	if answer.number != f.number || !bytes.Equal(answer.body, f.body) {
		return fmt.Errorf("answer %d is not that of %d", answer.number, f.number)
	}
	return <-sent
}

func (c *client) receive(connection netpoll.Connection) (frame, error) {
	f, err := readFrame(connection.Reader())
	if err == nil {
		c.report.received.add(f)
	}
	return f, err
}

// calls are those of many callers on one connection, whose answers come in any order.
type calls struct {
	queue   *mux.ShardQueue
	pending sync.Map // of chan frame, by number
	lost    chan struct{}
}

func (c *client) mux(connection netpoll.Connection) error {
	const callers, each = 32, 250
	all := &calls{queue: mux.NewShardQueue(mux.ShardSize, connection), lost: make(chan struct{})}
	received := make(chan error, 1)
	go func() {
		err := c.receiveAnswers(connection, all, callers*each)
		if err != nil {
			close(all.lost)
		}
		received <- err
	}()
	var group sync.WaitGroup
	for caller := range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for call := range each {
				c.report.fail(c.call(all, uint32(caller*each+call)))
			}
		}()
	}
	group.Wait()
	return errors.Join(<-received, all.queue.Close())
}

func (c *client) receiveAnswers(connection netpoll.Connection, all *calls, count int) error {
	for range count {
		answer, err := c.receive(connection)
		if err != nil {
			return err
		}
		call, ok := all.pending.LoadAndDelete(answer.number)
		if !ok {
			return fmt.Errorf("nobody has made call %d", answer.number)
		}
		call.(chan frame) <- answer
	}
	return nil
}

func (c *client) call(all *calls, number uint32) error {
	f := newFrame(number, int(number*37%9000))
	c.report.sent.add(f)
	answered := make(chan frame, 1)
	all.pending.Store(number, answered)
	all.queue.Add(f.buffer)
	select {
	case answer := <-answered:
		if !bytes.Equal(answer.body, f.body) {
			return fmt.Errorf("call %d has another's answer", number)
		}
		return nil
	case <-all.lost:
		return fmt.Errorf("call %d has no answer", number)
	}
}

func (c *client) sendAndClose(connection netpoll.Connection) error {
	for number := uint32(0); number < 300; number++ {
		f := newFrame(number, int(number)*700)
		c.report.sent.add(f)
		if err := f.send(connection.Writer()); err != nil {
			return err
		}
	}
	return nil
}

func (c *client) readToEnd(connection netpoll.Connection) error {
	for {
		_, err := c.receive(connection)
		if errors.Is(err, netpoll.ErrEOF) && !errors.Is(err, errFrame) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (c *client) readAFew(connection netpoll.Connection) error {
	for range 10 {
		if _, err := c.receive(connection); err != nil {
			return err
		}
	}
	return nil
}

// halfClose uses the system call: netpoll has none for it.
func (c *client) halfClose(connection netpoll.Connection) error {
	const count = 300
	sent := make(chan error, 1)
	go func() {
		for number := uint32(0); number < count; number++ {
			f := newFrame(number, int(number)*300)
			c.report.sent.add(f)
			if err := f.send(connection.Writer()); err != nil {
				sent <- err
				return
			}
		}
		sent <- syscall.Shutdown(connection.(netpoll.Conn).Fd(), syscall.SHUT_WR)
	}()
	err := c.readToEnd(connection)
	return errors.Join(err, <-sent)
}
