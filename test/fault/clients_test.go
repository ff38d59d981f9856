package fault

import (
	"slices"
	"testing"
	"time"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
)

// What a killed client held is free again at once: its connection is its lease.
func TestCase01KilledClientsFreeTheirLeases(t *testing.T) {
	kills := size(40, 1_000, 10_000)
	const held = 8 // clients at any time
	socket, dir := testdaemon.Place(t)
	p := testdaemon.StartProcess(t, socket, dir, testdaemon.EnvControl+"=1")
	d := &storetest.Daemon{Socket: socket, PID: p.PID, Goroutines: func() int { return testdaemon.Goroutines(socket) }}
	s, hangUp := remote(t, socket)
	t.Cleanup(hangUp)
	storetest.Put(t, s, "m", rowsA...)
	d.Ack("m:v1", storetest.Digest(t, rowsA...))
	d.Invariants(t) // the daemon has seen every kind of call
	d.Rest(t)
	clients := make(chan *process, held)
	spawned := make(chan struct{}) // closed when no more will come
	go func() {
		defer close(spawned)
		for range kills {
			c, err := spawn("hold", socket, "m")
			if err != nil {
				t.Error(err)
				close(clients)
				return
			}
			clients <- c
		}
		close(clients)
	}()
	var took []time.Duration
	for c := range clients {
		pid := int32(c.cmd.Process.Pid)
		begin := time.Now()
		c.kill()
		for {
			hs, err := s.Holders("m")
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(hs, func(l store.LeaseInfo) bool { return l.Holder.PID == pid }) {
				break
			}
			if time.Since(begin) > 10*time.Second {
				t.Fatalf("the lease of the killed client %d stays", pid)
			}
		}
		took = append(took, time.Since(begin))
	}
	<-spawned
	slices.Sort(took)
	p50, p99 := took[len(took)/2], took[len(took)*99/100]
	t.Logf("%d clients killed, %d beside each: leases gone after p50 %v, p99 %v, worst %v", len(took), held, p50, p99, took[len(took)-1])
	if p99 > 100*time.Millisecond {
		t.Errorf("p99 is %v, 100 ms are promised", p99)
	}
	if len(took) != kills {
		t.Errorf("%d of %d were killed", len(took), kills)
	}
	d.Invariants(t)
}
