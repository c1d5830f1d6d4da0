// The servers in Go that the benchmarks compare with.
//
//	servers PEER SERVICE SIZE     prints `ready PORT`, serves until stdin ends
package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
)

func main() {
	if len(os.Args) != 4 {
		fail("usage: servers PEER SERVICE SIZE")
	}
	size, err := strconv.ParseUint(os.Args[3], 10, 64)
	must(err)
	service := newService(os.Args[2], size)
	switch peer := os.Args[1]; peer {
	case "go-netpoll":
		go serveNetpoll(service, 1)
	case "go-netpoll-2":
		go serveNetpoll(service, 2)
	case "gnet":
		go serveGnet(service)
	case "go-net":
		go serveNet(service)
	default:
		fail(peer + " is no peer")
	}
	io.Copy(io.Discard, os.Stdin)
}

func ready(port int) {
	fmt.Printf("ready %d\n", port)
}

func must(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(message string) {
	fmt.Fprintln(os.Stderr, message)
	os.Exit(1)
}
