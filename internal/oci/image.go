package oci

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/zcstore/zcstore/models/manifest"
)

// Media types of what a version consists of.
const (
	ArtifactType = "application/vnd.zcstore.version.v1"
	ConfigType   = "application/vnd.zcstore.manifest.v1+json" // the canonical manifest
	TensorType   = "application/vnd.zcstore.tensor.v1"        // the plain bytes of one tensor
	BundleType   = "application/vnd.zcstore.bundle.v1"        // all smaller tensors, back to back in row order
)

// BlobBytes is the size from which a tensor is a blob of its own.
const BlobBytes = 64 << 10

// MaxImageBytes is the largest image manifest that is read: a layer for each of the most tensors a version may have.
const MaxImageBytes = 256 << 20

const (
	annKind    = "io.zcstore.kind"
	annTensors = "io.zcstore.tensors"
	annBytes   = "io.zcstore.tensor_bytes"
)

// Version is a version on disk, as its image manifest tells it.
type Version struct {
	Digest  manifest.Digest
	Kind    string // what the root of the tree is
	Tensors int
	Bytes   uint64 // of all tensors

	image  ocispec.Descriptor
	config ocispec.Descriptor
	layers []ocispec.Descriptor
}

// bundle is the layer of the small tensors, or nil.
func (v *Version) bundle() *ocispec.Descriptor {
	for i := range v.layers {
		if v.layers[i].MediaType == BundleType {
			return &v.layers[i]
		}
	}
	return nil
}

// blobs lists every blob of the version: image manifest, config, layers.
func (v *Version) blobs() []ocispec.Descriptor {
	return append([]ocispec.Descriptor{v.image, v.config}, v.layers...)
}

// DiskBytes is the size of the version's blobs, those that it shares included.
func (v *Version) DiskBytes() uint64 {
	n := uint64(0)
	for _, b := range v.blobs() {
		n += uint64(b.Size)
	}
	return n
}

// describe makes the image manifest of a version: a function of the version alone. bundle is nil when no tensor is small.
func describe(m *manifest.Manifest, config ocispec.Descriptor, bundle *ocispec.Descriptor) (*Version, []byte, error) {
	v := &Version{Kind: rootKind(m.Root), Tensors: len(m.Tensors), Bytes: uint64(m.TensorBytes()), config: config}
	var err error
	if v.Digest, err = fromOCI(config.Digest); err != nil {
		return nil, nil, err
	}
	seen := map[manifest.Digest]bool{}
	for i := range m.Tensors {
		t := &m.Tensors[i]
		if size := t.Bytes(); size >= BlobBytes && !seen[t.SHA256] {
			seen[t.SHA256] = true
			v.layers = append(v.layers, ocispec.Descriptor{MediaType: TensorType, Digest: toOCI(t.SHA256), Size: int64(size)})
		}
	}
	if bundle != nil {
		v.layers = append(v.layers, *bundle)
	}
	if len(v.layers) == 0 { // the format wants one
		v.layers = append(v.layers, ocispec.DescriptorEmptyJSON)
	}
	b, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
		Config: config, Layers: v.layers,
		Annotations: map[string]string{annKind: v.Kind, annTensors: strconv.Itoa(v.Tensors), annBytes: strconv.FormatUint(v.Bytes, 10)},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("encode image manifest: %w", err)
	}
	v.image = descriptorOf(ocispec.MediaTypeImageManifest, b)
	return v, b, nil
}

func descriptorOf(mediaType string, b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
}

func rootKind(n *manifest.Node) string {
	if n.Impl != "" {
		return n.Impl
	}
	return n.Kind.String()
}

// ParseImage reads an image manifest of ours. image is its own descriptor.
func ParseImage(image ocispec.Descriptor, b []byte) (*Version, error) {
	var m ocispec.Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	if m.SchemaVersion != 2 || m.Config.MediaType != ConfigType {
		return nil, fmt.Errorf("image manifest: schema %d, config of type %q: no version of ours", m.SchemaVersion, m.Config.MediaType)
	}
	v := &Version{Kind: m.Annotations[annKind], image: image, config: m.Config, layers: m.Layers}
	var err error
	if v.Digest, err = fromOCI(m.Config.Digest); err != nil {
		return nil, fmt.Errorf("image manifest: config: %w", err)
	}
	if m.Config.Size < 0 || m.Config.Size > manifest.MaxBytes {
		return nil, fmt.Errorf("image manifest: config of %d bytes", m.Config.Size)
	}
	bundles := 0
	for _, d := range m.Layers {
		if _, err := fromOCI(d.Digest); err != nil {
			return nil, fmt.Errorf("image manifest: layer: %w", err)
		}
		if d.Size < 0 {
			return nil, fmt.Errorf("image manifest: layer of %d bytes", d.Size)
		}
		if d.MediaType == BundleType {
			bundles++
		}
	}
	if bundles > 1 {
		return nil, fmt.Errorf("image manifest: %d bundles", bundles)
	}
	if v.Tensors, err = strconv.Atoi(m.Annotations[annTensors]); err != nil || v.Tensors < 0 {
		return nil, fmt.Errorf("image manifest: number of tensors %q", m.Annotations[annTensors])
	}
	if v.Bytes, err = strconv.ParseUint(m.Annotations[annBytes], 10, 63); err != nil {
		return nil, fmt.Errorf("image manifest: bytes of tensors %q", m.Annotations[annBytes])
	}
	return v, nil
}
