// The Go side of `npm run test:interop`: a server or a client on netpoll. peer.mjs is the same program on this
// package, and run.mjs runs them against each other.
//
//	interop server SCENARIO          prints its port, serves until stdin ends, prints its report
//	interop client SCENARIO PORT     prints its report
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/cloudwego/netpoll"
)

// Nothing here takes that long unless it hangs.
const limit = 30 * time.Second

func main() {
	openPollers()
	report := newReport()
	switch {
	case len(os.Args) == 3 && os.Args[1] == "server":
		serve(os.Args[2], report)
	case len(os.Args) == 4 && os.Args[1] == "client":
		runClient(os.Args[2], "127.0.0.1:"+os.Args[3], report)
	default:
		fmt.Fprintln(os.Stderr, "usage: interop server SCENARIO | client SCENARIO PORT")
		os.Exit(2)
	}
	report.settle()
	write(report.summary())
}

// openPollers makes netpoll and Go's runtime open what they keep open, before descriptors are counted.
func openPollers() {
	netpoll.Initialize()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	listener.Close()
}

func write(value any) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	os.Stdout.Write(append(line, '\n'))
}

func untilStdinEnds() {
	io.Copy(io.Discard, bufio.NewReader(os.Stdin))
}
