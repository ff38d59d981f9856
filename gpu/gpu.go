// Package gpu is the seam between models and what computes for them.
package gpu

// Device is where weights lie and ops run.
type Device interface{}
