package main

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"os"
	"sort"
	"sync"
	"time"
)

// tally is of frames in one direction. Its hash does not depend on their order, which is free where many send.
type tally struct {
	mutex   sync.Mutex
	digests []string
	bytes   int
}

func (t *tally) add(f frame) {
	hash := sha256.New()
	binary.Write(hash, binary.BigEndian, f.number)
	hash.Write(f.body)
	digest := hex.EncodeToString(hash.Sum(nil))
	t.mutex.Lock()
	defer t.mutex.Unlock()
	t.digests = append(t.digests, digest)
	t.bytes += headSize + len(f.body)
}

type tallied struct {
	Frames int    `json:"frames"`
	Bytes  int    `json:"bytes"`
	Hash   string `json:"hash"`
}

func (t *tally) summary() tallied {
	t.mutex.Lock()
	defer t.mutex.Unlock()
	sort.Strings(t.digests)
	hash := sha256.New()
	for _, digest := range t.digests {
		hash.Write([]byte(digest))
	}
	return tallied{len(t.digests), t.bytes, hex.EncodeToString(hash.Sum(nil))}
}

// report is what one side has seen; run.mjs compares those of both sides.
type report struct {
	sent, received tally
	mutex          sync.Mutex
	opened, closed int
	failures       []string
	before, after  int
}

func newReport() *report {
	return &report{failures: []string{}, before: descriptors()}
}

func (r *report) open() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.opened++
}

func (r *report) close() {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.closed++
}

func (r *report) fail(err error) {
	if err == nil {
		return
	}
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.failures = append(r.failures, err.Error())
}

// untilClosed waits until every connection is closed, or for so long that it never will.
func (r *report) untilClosed() {
	until(func() bool {
		r.mutex.Lock()
		defer r.mutex.Unlock()
		return r.opened == r.closed
	})
}

// settle waits, besides, until all descriptors are given back.
func (r *report) settle() {
	r.untilClosed()
	until(func() bool {
		r.after = descriptors()
		return r.after == r.before
	})
}

func until(condition func() bool) {
	for end := time.Now().Add(limit / 3); !condition() && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
}

func (r *report) summary() map[string]any {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	return map[string]any{
		"sent": r.sent.summary(), "received": r.received.summary(),
		"opened": r.opened, "closed": r.closed, "failures": r.failures,
		"descriptors": []int{r.before, r.after},
	}
}

func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	return len(entries)
}
