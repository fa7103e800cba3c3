// Package storage describes layers, mounts, step results and images: what the
// engine asks of a store, without saying how a store keeps them.
//
// storage/overlay implements Layers and Mounter, storage/index implements
// Steps and Images, storage/blobs implements Blobs. storage/storagetest holds
// every implementation to this contract.
package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
)

var (
	// ErrNotFound is wrapped by every look-up whose subject is not in the store.
	ErrNotFound = errors.New("not in the store")
	// ErrAmbiguous is wrapped by Images.ByPrefix when several images share a prefix.
	ErrAmbiguous = errors.New("ambiguous image ID")
	// ErrInUse is wrapped by a removal of what a running build or an image still needs.
	ErrInUse = errors.New("in use")
)

// Digest is a content digest, always "sha256:" and 64 lower-case hex digits.
type Digest string

// DigestBytes returns the digest of b.
func DigestBytes(b []byte) Digest {
	sum := sha256.Sum256(b)
	return Digest("sha256:" + hex.EncodeToString(sum[:]))
}

// ParseDigest returns s as a Digest, or an error when it is not of the form
// "sha256:" and 64 lower-case hex digits.
func ParseDigest(s string) (Digest, error) {
	rest, ok := strings.CutPrefix(s, "sha256:")
	if !ok || !IsHex64(rest) {
		return "", fmt.Errorf("%.100q is not a sha256 digest", s)
	}
	return Digest(s), nil
}

// IsHex64 reports whether s is 64 lower-case hex digits.
func IsHex64(s string) bool {
	return len(s) == 64 && IsHex(s)
}

// IsHex reports whether s holds lower-case hex digits only. Empty is not hex.
func IsHex(s string) bool {
	return s != "" && strings.Trim(s, "0123456789abcdef") == ""
}

// Hex returns the digest without "sha256:".
func (d Digest) Hex() string { return strings.TrimPrefix(string(d), "sha256:") }

// Short returns the first 12 hex digits, as docker shows image IDs.
func (d Digest) Short() string {
	h := d.Hex()
	return h[:min(12, len(h))]
}

// LayerID names one layer's directory in the store: 64 hex digits, random,
// never derived from content.
type LayerID string

// Layer is one committed layer: a diff directory in overlay format (whiteouts
// are char devices 0:0, opaque directories carry user.overlay.opaque=y).
type Layer struct {
	ID LayerID `json:"id"`
	// Identity stands for the content in cache keys: the step's key for a RUN,
	// a digest over the content for COPY, ADD and imports.
	Identity Digest `json:"identity"`
	// SizeBytes is the sum of the regular files' sizes, each inode once.
	SizeBytes int64 `json:"size"`
	// Created is when the layer was committed, in UTC with whole seconds.
	Created time.Time `json:"created"`
	// Linked are the layers whose inodes have names in this one, because a COPY
	// --from linked instead of copying, directly or through another layer.
	Linked []LayerID `json:"linked,omitempty"`
}

// Seal is what the first export of a layer computes once: the digests of its
// tar stream and of its compressed blob.
type Seal struct {
	DiffID    Digest `json:"diffID"`
	Blob      Digest `json:"blob"`      // "" when only the uncompressed digest is known
	MediaType string `json:"mediaType"` // of the blob
	BlobBytes int64  `json:"blobBytes"`
	TarBytes  int64  `json:"tarBytes"`
}

// Staged is a layer in the making. Exactly one of Commit and Discard takes
// effect; Discard after Commit does nothing, so that it can be deferred.
type Staged interface {
	// Dir is the directory that becomes the layer's diff directory. Absolute.
	Dir() string
	// WorkDir is an empty directory on the same file system, for overlay's workdir.
	WorkDir() string
	// Commit gives the layer its name and puts it into the catalogue. When
	// another layer has the name already, that one's ID is returned, won is
	// false and what was staged here is dropped.
	Commit(ctx context.Context, name string) (id LayerID, won bool, err error)
	// Discard removes what was staged.
	Discard() error
}

// Layers keeps layers. Safe for concurrent use, also by several processes.
type Layers interface {
	// Stage begins a new layer.
	Stage(ctx context.Context) (Staged, error)
	// Dir returns the diff directory of a layer: absolute, to be read only.
	// The error wraps ErrNotFound when there is no such layer.
	Dir(id LayerID) (string, error)
	// Find returns the layer with that name; the error wraps ErrNotFound.
	Find(ctx context.Context, name string) (LayerID, error)
	// All lists every committed layer.
	All(ctx context.Context) ([]LayerID, error)
	// Remove deletes layers; one that does not exist is not an error.
	Remove(ctx context.Context, ids ...LayerID) error
}

// StepLayerName is the name in the catalogue of the layer that the step with
// this cache key made.
func StepLayerName(key Digest) string { return "mstage-step:" + key.Hex() }

// DiffLayerName is the name in the catalogue of a layer that came from outside
// with this digest of its uncompressed tar.
func DiffLayerName(diffID Digest) string { return "mstage-diff:" + diffID.Hex() }

// MountOptions says what Mounter.Mount shows at Target.
type MountOptions struct {
	// Layers are the lower layers, lowest first. May be empty when Stub is set. One
	// that is there twice counts where it is highest, which comes to the same.
	Layers []LayerID
	// Stub is a directory below all layers that holds mount points; "" for none.
	Stub string
	// Upper and Work make the mount writable. Both "" mounts read-only.
	Upper, Work string
	// Target is an existing directory. Absolute.
	Target string
}

// Mounter shows the merged view of layers as a directory.
type Mounter interface {
	// Mount returns the function that unmounts again.
	Mount(ctx context.Context, o MountOptions) (unmount func() error, err error)
}

// StepRecord is what a step that succeeded left behind.
type StepRecord struct {
	Layer Layer `json:"layer"`
	// From are the layers that a COPY --from read, lowest first, so that a later
	// source can be compared with what they hold.
	From []LayerID `json:"from,omitempty"`
}

// Steps finds and keeps step results by cache key.
type Steps interface {
	// Step returns the record for a key; ok is false when there is none or its
	// layer is gone.
	Step(ctx context.Context, key Digest) (rec StepRecord, ok bool, err error)
	// RecordSteps keeps rec under every one of keys.
	RecordSteps(ctx context.Context, rec StepRecord, keys ...Digest) error
	// ForgetSteps removes the records of keys; one without a record is not an
	// error. Layers stay until collected.
	ForgetSteps(ctx context.Context, keys ...Digest) error
}

// Image is one image of the store.
type Image struct {
	// ID is the local ID: the digest over the canonical config with layer
	// identities in place of diff IDs. Final when the build ends.
	ID Digest `json:"id"`
	// Config is the OCI image config. Its rootfs.diff_ids are right only in
	// SealedConfig.
	Config []byte `json:"config"`
	// Layers, lowest first: one for each history entry that is not empty_layer.
	Layers []Layer `json:"layers"`
	// Created is the config's time, zero when it has none.
	Created time.Time `json:"created"`
	// Sealed is nil until the first export or save, or for a loaded image set
	// from the start.
	Sealed *SealedImage `json:"sealed,omitempty"`
}

// SizeBytes is the sum over the layers.
func (i Image) SizeBytes() int64 {
	var sum int64
	for _, l := range i.Layers {
		sum += l.SizeBytes
	}
	return sum
}

// SealedImage is the image as registries and docker know it.
type SealedImage struct {
	// ConfigDigest is docker's image ID: the digest of Config.
	ConfigDigest Digest `json:"configDigest"`
	// Config is the exact bytes of the OCI config, diff IDs included.
	Config []byte `json:"config"`
	// Manifest is the manifest that the image came with; nil when mstage made
	// the image.
	Manifest *Manifest `json:"manifest,omitempty"`
}

// Manifest is an image manifest from outside, kept so that the image goes out
// again as it came in.
type Manifest struct {
	// MediaType is that of an OCI or docker manifest.
	MediaType string `json:"mediaType"`
	// Raw is the exact bytes; their digest is the image's in a registry.
	Raw []byte `json:"raw"`
	// Blobs are the layers, lowest first.
	Blobs []Blob `json:"blobs"`
}

// Digest is the digest of the manifest.
func (m *Manifest) Digest() Digest { return DigestBytes(m.Raw) }

// Blob is a layer as a manifest and its config describe it.
type Blob struct {
	Digest    Digest `json:"digest"`
	MediaType string `json:"mediaType"`
	SizeBytes int64  `json:"size"`
	DiffID    Digest `json:"diffID"`
}

// TaggedImage is an image with the names that point to it, sorted.
type TaggedImage struct {
	Image
	Names []string `json:"names"`
}

// Images keeps images and their names. A name is a normalised reference with a
// tag ("docker.io/library/busybox:latest", "localhost/x:1"), or for an image
// that was asked for by digest one with that digest and no tag.
type Images interface {
	// Image returns the image with that local ID or sealed config digest; the
	// error wraps ErrNotFound.
	Image(ctx context.Context, id Digest) (Image, error)
	// ByName returns the image that name points to; the error wraps ErrNotFound.
	ByName(ctx context.Context, name string) (Image, error)
	// ByPrefix returns the one image whose local ID or config digest begins
	// with the hex digits; the error wraps ErrNotFound or ErrAmbiguous (its
	// text lists the candidates).
	ByPrefix(ctx context.Context, hex string) (Image, error)
	// AllImages lists every image, newest first.
	AllImages(ctx context.Context) ([]TaggedImage, error)
	// PutImage keeps an image (again) and points names to it.
	PutImage(ctx context.Context, img Image, names ...string) error
	// Untag removes a name; the error wraps ErrNotFound.
	Untag(ctx context.Context, name string) error
	// RemoveImage forgets an image and its names. Layers stay until collected.
	RemoveImage(ctx context.Context, id Digest) error
}

// Seals keeps what the first export of a layer computed.
type Seals interface {
	// Seal returns ok false when the layer was never exported.
	Seal(ctx context.Context, id LayerID) (s Seal, ok bool, err error)
	PutSeal(ctx context.Context, id LayerID, s Seal) error
}

// Blobs keeps compressed layer blobs by digest.
type Blobs interface {
	// Open returns the blob; the error wraps ErrNotFound. The caller closes.
	Open(ctx context.Context, d Digest) (io.ReadCloser, int64, error)
	// Create returns a writer whose Commit verifies the digest.
	Create(ctx context.Context) (BlobWriter, error)
	// Remove deletes blobs; one that does not exist is not an error.
	Remove(ctx context.Context, ds ...Digest) error
}

// BlobWriter takes one blob. Close without Commit drops what was written.
type BlobWriter interface {
	io.Writer
	// Sum returns the digest of what was written so far.
	Sum() Digest
	// Commit publishes the blob and returns its digest and size. When want is
	// not "" and differs from what was written, nothing is published.
	Commit(want Digest) (d Digest, sizeBytes int64, err error)
	Close() error
}

// Lease keeps the garbage collector of every process away from layers that a
// running build uses but no image names yet.
type Lease interface {
	// Hold adds layers. It returns after they are safe; the error wraps
	// ErrNotFound when one is gone already.
	Hold(ctx context.Context, ids ...LayerID) error
	// Release ends the lease. It also ends when the process does.
	Release() error
}
