// Package pluginapi is the contract between mstage and whatever answers for a
// kind of stage source: what stands after FROM and COPY --from=.
//
// The built-in look-ups (stage name, stage index, local tag, image ID) and
// third parties' plugins implement the same Source; plugintest holds them to
// it. The package imports the standard library only.
package pluginapi

import (
	"context"
	"errors"
	"io"
)

// ErrNotFound is wrapped by Source.Resolve when the source does not know the
// reference: the next source is asked.
var ErrNotFound = errors.New("not found")

// Causes that an *Error may wrap: they decide the exit code of the build.
var (
	// ErrNetwork is a network or a registry that does not do its part.
	ErrNetwork = errors.New("network or registry failure")
	// ErrAuth is access denied for want of credentials, or with those given.
	ErrAuth = errors.New("access denied")
)

// Error is a refusal that ends the look-up: the reference is the source's to
// answer, and the answer is no. Hint is shown apart from the message.
type Error struct {
	Message string
	Hint    string
	Err     error // the cause, may be nil
}

func (e *Error) Error() string { return e.Message }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Protocol is the version of this contract.
const Protocol = 1

// Description says what a source is and can do.
type Description struct {
	// Name is unique among the sources of a build: "stagename", "localtag", …
	Name string
	// Protocol is the version of the contract that the source was written for.
	Protocol int
	// Summary is one sentence for people: what the source looks a word up in.
	Summary string
	// Schemes are the prefixes ("deb" for deb:curl) that the source alone
	// answers for. Empty for sources that are asked about every word.
	Schemes []string
	// Capabilities are names of optional abilities.
	Capabilities []string
	// Examples are references that show how to write one.
	Examples []string
}

// Use says which instruction asks.
type Use string

// The uses.
const (
	UseFrom  Use = "FROM"
	UseCopy  Use = "COPY --from"
	UseMount Use = "RUN --mount from"
)

// Position is where the reference stands in the Dockerfile, 1-based.
type Position struct {
	File         string
	Line, Column int
}

// Stage is one stage that stands before the asking line.
type Stage struct {
	Name  string // as written after AS; "" when unnamed
	Index int
}

// Request asks what a reference stands for.
type Request struct {
	// Reference is the word as written, variables expanded.
	Reference string
	Use       Use
	// Platform is "os/arch[/variant]".
	Platform string
	// Stages are the stages that may be named here, in order.
	Stages   []Stage
	Position Position
	// Offline forbids every access to a network.
	Offline bool
	// LockedDigest, when not "", is the only content digest that may be answered.
	LockedDigest string
}

// Resolved is exactly one of: a stage, an image of the local store, or content.
type Resolved struct {
	// Source is the name of the source that answered; the host fills it in.
	Source string `json:"source"`
	// Reference is the word in full: "docker.io/library/busybox:latest".
	Reference string `json:"reference"`
	// Stage is the index of a stage, or nil.
	Stage *int `json:"stage,omitempty"`
	// Image is the local ID of an image in the store ("sha256:…"), or "".
	Image string `json:"image,omitempty"`
	// Content is set for everything that has to be fetched.
	Content *Content `json:"content,omitempty"`
}

// Content is something that Fetch can deliver.
type Content struct {
	// Digest identifies the content; it is the cache key.
	Digest string `json:"digest"`
	// SizeHint is the number of bytes to expect, 0 when not known.
	SizeHint int64 `json:"sizeHint,omitempty"`
	// Config is an OCI image config for FROM, nil when the source has none.
	Config []byte `json:"config,omitempty"`
	// Manifest is an OCI or docker image manifest with Digest as its digest, nil
	// when the content is no image of a registry. With it Config is required,
	// the host asks for single layers, and the image keeps its digest.
	Manifest []byte `json:"manifest,omitempty"`
	// MediaType is the manifest's.
	MediaType string `json:"mediaType,omitempty"`
}

// Selection narrows a Fetch to what is needed. Empty fields mean everything.
type Selection struct {
	Paths []string
	// Layers are digests of layers in Content.Manifest: only these are wanted.
	Layers []string
}

// Layer is one layer that a Fetch delivers.
type Layer struct {
	// Digest is that of the blob in Content.Manifest, "" without a manifest.
	Digest string
	// MediaType may be "" when not known.
	MediaType string
}

// Receiver takes what a Fetch delivers: either one root file system tar, or
// layer tars.
type Receiver interface {
	// Layer takes one layer as an OCI layer tar, compressed or not. Layers of a
	// manifest may come in any order and several at once; others come from the
	// lowest up, one after another.
	Layer(ctx context.Context, l Layer, tar io.Reader) error
	// RootFS takes a whole root file system as a tar. At most one call.
	RootFS(ctx context.Context, tar io.Reader) error
}

// Source answers for one kind of stage source. Safe for concurrent use.
type Source interface {
	// Describe says what the source is; it doesn't change while it lives.
	Describe(ctx context.Context) (Description, error)
	// Resolve says what a reference stands for. errors.Is(err, ErrNotFound):
	// the next source is asked. Every other error ends the build.
	Resolve(ctx context.Context, r Request) (Resolved, error)
	// Fetch delivers Content that Resolve answered.
	Fetch(ctx context.Context, r Resolved, s Selection, to Receiver) error
}
