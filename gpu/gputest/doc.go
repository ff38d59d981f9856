// Package gputest is the truth about ops: the kit that every backend has to pass, and a device that catches models which
// look behind the seam.
//
// [Run] compares a device with a float64 reference that shares no code with any kernel. [Async] wraps a device so that
// it runs late and poisons what a model must not touch; all tests of models run on it too.
package gputest
