// Package oci keeps versions on disk as an OCI image layout, so that a push to a registry is a copy by any tool that knows the
// format, and a reboot loses nothing that was acknowledged.
//
// # What is in the directory
//
//	oci-layout            what makes the directory an image layout
//	index.json            a descriptor per name:tag, replaced whole
//	blobs/sha256/<hex>    every blob, under the SHA-256 of its bytes
//	tmp/                  blobs and indexes that are being written; emptied at start
//	reserve               room for one more index when the disk is full
//	lock                  flock of the daemon that serves the directory
//
// A version is one image manifest. Its config is the version's canonical manifest, so the config's digest is the version's
// digest; its layers are one blob per tensor of BlobBytes and more, so that the blob's digest is the tensor's, and one bundle
// with all smaller tensors back to back, in the order of the manifest's rows. The image manifest is a function of the version
// alone: the same version has the same one on every host. Equal blobs of several versions are stored once.
//
// # Crashes
//
// The types come from github.com/opencontainers/image-spec. The writer is our own, because those that exist for the format
// (oras-go content/oci, go-containerregistry layout) do not fsync: they may acknowledge a version that a power cut then takes
// away, or leave an index.json of no bytes. Here a blob is written under a temporary name, synced, renamed, and the directory
// synced; only then may an index name it, and the index itself is replaced in the same four steps. A blob that no index names is litter
// and goes at the next start. Blobs are removed after the index that forgot them is on disk.
//
// After a failed fsync the kernel may have dropped the very pages that it could not write, and a second fsync may report
// success for them. So one failure makes the layout read-only until it is opened anew: reading goes on, changes are refused.
package oci
