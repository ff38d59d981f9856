// Package pickle reads PyTorch state dicts (.bin, .pt, .pth): their tensors, and nothing else.
//
// A pickle is a program for a small machine that may call any function of Python. The machine here knows those that build
// tensors (see globals) and runs none of them: a call becomes a record of where the tensor lies. Any other name is an error
// that says which.
//
// Bytes are not read, only found: the tensors of a file point into it. Both layouts are known, the zip archive that torch.save
// writes since version 1.6 and the stream before it.
package pickle
