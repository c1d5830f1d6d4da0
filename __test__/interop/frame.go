package main

import (
	"crypto/rand"
	"encoding/binary"
	"errors"

	"github.com/cloudwego/netpoll"
)

// A frame is a u32 with the length of its body, a u32 with its number, both big endian, and the body.
const headSize = 8

type frame struct {
	number uint32
	body   []byte
}

var errFrame = errors.New("a frame was cut")

func newFrame(number uint32, size int) frame {
	body := make([]byte, size)
	rand.Read(body)
	return frame{number, body}
}

// readFrame waits for a whole frame. At the end of the stream it returns netpoll's error, and errFrame when the
// stream ended within a frame.
func readFrame(reader netpoll.Reader) (frame, error) {
	head, err := reader.Next(headSize)
	if err != nil {
		if reader.Len() > 0 {
			return frame{}, errFrame
		}
		return frame{}, err
	}
	size := int(binary.BigEndian.Uint32(head))
	number := binary.BigEndian.Uint32(head[4:])
	body, err := reader.ReadBinary(size)
	if err != nil {
		return frame{}, errors.Join(errFrame, err)
	}
	return frame{number, body}, reader.Release()
}

func (f frame) head() []byte {
	head := make([]byte, headSize)
	binary.BigEndian.PutUint32(head, uint32(len(f.body)))
	binary.BigEndian.PutUint32(head[4:], f.number)
	return head
}

// put leaves the flush to the caller.
func (f frame) put(writer netpoll.Writer) error {
	if _, err := writer.WriteBinary(f.head()); err != nil {
		return err
	}
	_, err := writer.WriteBinary(f.body)
	return err
}

func (f frame) send(writer netpoll.Writer) error {
	if err := f.put(writer); err != nil {
		return err
	}
	return writer.Flush()
}

// buffer is the frame as an item of a mux.ShardQueue.
func (f frame) buffer() (netpoll.Writer, bool) {
	buffer := netpoll.NewLinkBuffer()
	f.put(buffer)
	buffer.Flush()
	return buffer, false
}
