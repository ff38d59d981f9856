// Package testleak is for TestMain: it fails a package whose tests leave something behind.
package testleak

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// state is what a process holds that tests may forget.
type state struct {
	fds      map[string]int // link target without its number -> count
	maps     int            // mappings of segments
	segments []string       // test directories in shared memory
	children int
}

// Run runs the tests and then compares with the start: goroutines, descriptors, mapped segments, test directories in shared
// memory, child processes. What stays is printed, and makes the exit code 1.
func Run(m *testing.M) int {
	before := look()
	code := m.Run()
	if code != 0 {
		return code
	}
	var left []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) { // things that end by themselves
		if left = append(before.compare(look()), goroutines()...); len(left) == 0 {
			return 0
		}
		if time.Now().After(deadline) {
			break
		}
	}
	fmt.Fprintf(os.Stderr, "left behind by the tests:\n  %s\n", strings.Join(left, "\n  "))
	return 1
}

func look() state {
	s := state{fds: map[string]int{}}
	links, _ := os.ReadDir("/proc/self/fd")
	for _, l := range links {
		target, err := os.Readlink("/proc/self/fd/" + l.Name())
		if err != nil || strings.HasPrefix(target, "anon_inode:") || target == "/proc/self/fd" || strings.HasPrefix(target, "/proc/") {
			continue // of the runtime, or of this very look
		}
		if i := strings.IndexByte(target, '['); i > 0 { // socket:[123]
			target = target[:i]
		}
		s.fds[target]++
	}
	b, _ := os.ReadFile("/proc/self/maps")
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, "/zcstore-") && strings.Contains(line, "/dev/shm/") {
			s.maps++
		}
	}
	s.segments, _ = filepath.Glob(fmt.Sprintf("/dev/shm/zcstore-test-%d-*", os.Getpid()))
	stat, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range stat {
		b, _ := os.ReadFile(f)
		s.children += len(strings.Fields(string(b)))
	}
	return s
}

func (before state) compare(now state) []string {
	var left []string
	for target, n := range now.fds {
		if d := n - before.fds[target]; d > 0 {
			left = append(left, fmt.Sprintf("%d open descriptors of %s", d, target))
		}
	}
	if d := now.maps - before.maps; d > 0 {
		left = append(left, fmt.Sprintf("%d mapped segments", d))
	}
	if d := now.children - before.children; d > 0 {
		left = append(left, fmt.Sprintf("%d child processes", d))
	}
	if len(now.segments) > len(before.segments) {
		left = append(left, "in shared memory: "+strings.Join(now.segments, " "))
	}
	return left
}

// goroutines lists what runs beyond the runtime's own and this one.
func goroutines() []string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for _, g := range strings.Split(string(buf), "\n\n") {
		if strings.Contains(g, "testleak.Run") || strings.Contains(g, "os/signal.") || strings.Contains(g, "runtime.ensureSigM") ||
			strings.Contains(g, "testing.(*M)") || strings.Contains(g, "testing.tRunner.func") {
			continue
		}
		left = append(left, "goroutine: "+strings.ReplaceAll(g, "\n", "\n    "))
	}
	return left
}
