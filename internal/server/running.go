package server

import "sync"

// running counts calls that the end of the server waits for. Unlike a sync.WaitGroup, a call may begin while somebody waits.
type running struct {
	mu   sync.Mutex
	n    int           // guarded by mu
	idle chan struct{} // guarded by mu; closed when n goes to 0
}

func (r *running) begin() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n == 0 {
		r.idle = make(chan struct{})
	}
	r.n++
}

func (r *running) end() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.n--; r.n == 0 {
		close(r.idle)
	}
}

// wait returns at a moment at which no call runs.
func (r *running) wait() {
	r.mu.Lock()
	idle, n := r.idle, r.n
	r.mu.Unlock()
	if n > 0 {
		<-idle
	}
}
