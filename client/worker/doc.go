// Package worker runs functions in worker processes, or in goroutines with the same calls.
//
// A worker process is the program itself, run again from /proc/self/exe. It builds an [Actor] once, which is the time
// to load a model, and then answers calls one at a time until its pool is closed.
//
// # A program with workers
//
// Two lines are needed. Actors are defined at package level, so that the worker, being the same program, knows them:
//
//	var embed = worker.Define("embed", func(ctx context.Context, a Args) (worker.Actor[string, []float32], error) { ... })
//
// and [Main] stands first in main, and in TestMain of a test that starts workers:
//
//	func main() {
//		worker.Main()
//		...
//	}
//
// In the program Main returns at once. In a worker it serves and never returns. Then [Start] makes a [Pool], and
// [Pool.Call] runs a call on whichever worker is free. [Run] is the one-shot form: build, one call, close.
//
// # What travels
//
// Arguments, inputs and outputs travel as encoding/gob over pipes, so they need exported fields; in goroutine mode
// they are handed over as they are, so neither side may change them afterwards. Slices of numbers ([]float32,
// [][]float32, []int64, ... unnamed) travel as raw little-endian bytes; [Floats] does the same inside a struct.
// A worker's stdout and stderr stay free for talk: they are those of the program, or the writers in [Options].
//
// # What goes wrong
//
// An error of an actor arrives as an [*Error] with the worker's number and pid and the original text. Identity does
// not cross a process, but a kind does: an error with a method ErrorKind() string matches, by errors.Is, any
// error of the same kind on the other side; context.Canceled and context.DeadlineExceeded match too. A panic
// in an actor is such an error, of kind [KindPanic], and the worker lives on.
//
// A worker that dies in a call is started again and the call is repeated, [Options].Retries times; then the error
// has an [*Exit] in it, with signal or status and the end of the worker's stderr. A call may therefore run twice.
// A worker that died while idle is started again by the next call that is given to it.
//
// # Who ends whom
//
// A worker ends when the pipe from its parent closes, so it ends when the parent does, however that dies.
// It stays in the parent's process group but disregards SIGINT, SIGTERM and SIGHUP: Ctrl-C reaches the whole group,
// and it is for the parent to finish or cancel what is under way and to close the pool. To end one worker by hand, use
// SIGKILL. (Before Main, while a worker's packages are initialised, a signal still ends it; that is a failed start.)
// When the parent dies, the actors' Close methods do not run; the kernel frees what the workers held.
//
// A worker starts no worker processes of its own; that is refused. It may start goroutine pools.
package worker
