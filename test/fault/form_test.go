package fault

import (
	"strings"
	"testing"

	"github.com/zcstore/zcstore/internal/store"
	"github.com/zcstore/zcstore/internal/store/storetest"
	"github.com/zcstore/zcstore/internal/testdaemon"
	"github.com/zcstore/zcstore/models/derive"
)

// A daemon that is killed at any step of making a form leaves nothing of it, or all of it; what was put is whole.
func TestDaemonKilledAtEveryStepOfAForm(t *testing.T) {
	at := filesKept(t)
	p := at.start()
	for n := 1; ; n++ {
		s, hangUp := remote(t, at.socket)
		emptyStore(t, s)
		if _, err := s.Put("m", false, storetest.WeightsDraft("", storetest.Weights()...)); err != nil {
			t.Fatal(err)
		}
		testdaemon.KillAt(t, at.socket, n)
		h, err := s.AttachAs("m", store.Ask{Form: derive.Packed})
		if err == nil {
			h.Release()
			steps := testdaemon.Steps(t, at.socket)
			hangUp()
			if len(steps) < n {
				t.Logf("killed at %d steps: %s", n-1, strings.Join(steps, " "))
				if n < 10 {
					t.Error("to make a form has more steps than that")
				}
				break
			}
			t.Fatalf("step %d: answered by a daemon that is dead", n)
		}
		p.Wait()
		hangUp()
		p = at.start()
		s, hangUp = remote(t, at.socket)
		checkKilled(t, s, at.dir, at.own, n)
		h, err = s.AttachAs("m", store.Ask{Form: derive.Packed})
		if err != nil {
			t.Fatalf("step %d: %v", n, err)
		}
		if bad := h.Broken(); bad != "" || len(h.Derived) != 4 {
			t.Errorf("step %d: tensor %q is damaged, %d things were made", n, bad, len(h.Derived))
		}
		h.Release()
		checkKilled(t, s, at.dir, at.own, n)
		hangUp()
	}
	p.Kill()
}
