// Package plan turns a bound stage graph into immutable steps with everything
// that running and caching them needs.
//
// A plan is plain data: it crosses to the worker as JSON, `mstage plan --format
// json` prints it, and golden files hold it. A step's definition key is a pure
// function of text, pinned sources and flags.
package plan

import (
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// FormatVersion changes whenever a plan of an older version can't be read, or
// an equal step would get another key.
const FormatVersion = 1

// Plan is everything that a build will do.
type Plan struct {
	Version  int    `json:"version"`
	Platform string `json:"platform"`
	// Target is the index in Stages of the stage to export.
	Target int `json:"target"`
	// Stages are the ones that the target needs, in the file's order.
	Stages []Stage `json:"stages"`
	// Images are the store's images that stages refer to.
	Images []Image `json:"images,omitempty"`
}

// Image is a pinned image: one of the local store, or content that has to be
// fetched first.
type Image struct {
	Reference string         `json:"reference"`
	Source    string         `json:"source"` // the pluginapi.Source that answered
	ID        storage.Digest `json:"id"`
	// Layers have no ID where Content is set: only their identity is known.
	Layers  []storage.Layer `json:"layers"`
	Content *Content        `json:"content,omitempty"`
	// Pos is where Content is first named.
	Pos dockerfile.Position `json:"pos,omitzero"`
}

// Content is an image that a source has.
type Content struct {
	// Resolved is the source's answer, without what is in the other fields.
	Resolved pluginapi.Resolved `json:"resolved"`
	Manifest storage.Manifest   `json:"manifest"`
	Config   []byte             `json:"config"`
}

// Source says where files come from: exactly one field is set, or none for the
// build context.
type Source struct {
	// Stage is an index in Plan.Stages.
	Stage *int `json:"stage,omitempty"`
	// Image is an index in Plan.Images.
	Image *int `json:"image,omitempty"`
	// Scratch is an empty file system.
	Scratch bool `json:"scratch,omitempty"`
}

// Stage is one stage with its steps in order.
type Stage struct {
	// Index is the stage's number in the Dockerfile.
	Index int `json:"index"`
	// Name is the word after AS, "" without one.
	Name string `json:"name,omitempty"`
	// Label is what progress shows: the name, or "stage-N".
	Label string              `json:"label"`
	Base  Source              `json:"base"`
	Pos   dockerfile.Position `json:"pos"`
	// From is the FROM line as written, for the progress title.
	From  string `json:"from"`
	Steps []Step `json:"steps"`
	// Config is the stage's final config. Its history holds the base image's
	// entries; those of stages, times and diff IDs are added at the end.
	Config imageconfig.Config `json:"config"`
	// History are the entries that this stage adds to those of its base.
	History []HistoryEntry `json:"history"`
}

// HistoryEntry is one line of history. Step is the index in Steps whose layer
// the entry describes, -1 for an instruction that changes the config only.
type HistoryEntry struct {
	CreatedBy string `json:"createdBy"`
	Comment   string `json:"comment,omitempty"`
	Author    string `json:"author,omitempty"`
	Step      int    `json:"step"`
}

// Step is one change to a stage's file system. Exactly one of Run, Copy and
// Workdir is set.
type Step struct {
	// Title is what progress shows: "RUN make".
	Title string `json:"title"`
	// Number of Total counts as docker does: FROM is 1.
	Number int                 `json:"number"`
	Total  int                 `json:"total"`
	Pos    dockerfile.Position `json:"pos"`
	// Needs are indexes in Plan.Stages whose result the step reads, without its own.
	Needs   []int    `json:"needs,omitempty"`
	Run     *Run     `json:"run,omitempty"`
	Copy    *Copy    `json:"copy,omitempty"`
	Workdir *Workdir `json:"workdir,omitempty"`
}

// Run is a command in a sandbox.
type Run struct {
	Args []string `json:"args"`
	// Env is the environment in scope, sorted by first appearance: the config's
	// ENV, then ARGs. HOME and PATH defaults are added when it runs.
	Env []string `json:"env"`
	// KeyEnv is Env without what is not part of the cache key (proxy variables).
	KeyEnv  []string `json:"keyEnv,omitempty"`
	Dir     string   `json:"dir"`
	User    string   `json:"user,omitempty"` // as in the config: name or number, optional group
	Mounts  []Mount  `json:"mounts,omitempty"`
	Files   []File   `json:"files,omitempty"` // here-documents that the command reads as files
	Network string   `json:"network"`
	// ShmBytes and Ulimits are the build's; they change what a command sees.
	ShmBytes int64    `json:"shmBytes,omitempty"`
	Ulimits  []Ulimit `json:"ulimits,omitempty"`
}

// Ulimit is one --ulimit.
type Ulimit struct {
	Name string `json:"name"`
	Soft int64  `json:"soft"`
	Hard int64  `json:"hard"`
}

// Mount is one RUN --mount.
type Mount struct {
	Type      dockerfile.MountType `json:"type"`
	From      Source               `json:"from"`
	Context   bool                 `json:"context,omitempty"` // bind: from the build context
	Source    string               `json:"source,omitempty"`
	Target    string               `json:"target"` // absolute
	ReadOnly  bool                 `json:"readOnly,omitempty"`
	SizeBytes int64                `json:"sizeBytes,omitempty"`
	ID        string               `json:"id,omitempty"`
	Sharing   string               `json:"sharing,omitempty"`
	Required  bool                 `json:"required,omitempty"`
	Env       string               `json:"env,omitempty"` // secret: the variable that gets it
	Mode      uint32               `json:"mode,omitempty"`
	UID       uint32               `json:"uid,omitempty"`
	GID       uint32               `json:"gid,omitempty"`
}

// File is a small file whose content stands in the Dockerfile.
type File struct {
	Name string `json:"name"`
	Data string `json:"data"`
}

// Copy is a COPY, or an ADD of local files.
type Copy struct {
	From Source `json:"from"`
	// Context is set when the files come from the build context.
	Context bool `json:"context,omitempty"`
	// Sources are cleaned paths relative to the source's root, with wildcards.
	Sources []string `json:"sources,omitempty"`
	Inline  []File   `json:"inline,omitempty"`
	// Dest is absolute; a trailing "/" says that it is a directory.
	Dest string `json:"dest"`
	// Chown is "user[:group]", names or numbers, "" for the rule of the source.
	Chown string `json:"chown,omitempty"`
	// Chmod is octal or symbolic, "" to keep modes.
	Chmod string `json:"chmod,omitempty"`
	// Unpack says that a source that is a tar is unpacked (ADD).
	Unpack bool `json:"unpack,omitempty"`
}

// Workdir makes a directory unless it exists.
type Workdir struct {
	Path string `json:"path"`
	// User owns a directory that is made.
	User string `json:"user,omitempty"`
}
