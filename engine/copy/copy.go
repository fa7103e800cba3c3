// Package copy turns a COPY or ADD into the content of a staged layer.
//
// Select finds what the sources name in a file tree, Selection.Digest is the
// identity of that content, and Apply writes it as an overlay-format diff
// directory that fits on top of the destination's layers. Nothing is mounted.
// What goes where follows BuildKit. Source: Dockerfile reference, "COPY",
// "ADD"; BuildKit solver/llbsolver/file and tonistiigi/fsutil's copy package.
package copy

import (
	"fmt"
	"strings"

	"github.com/mstage/mstage/storage/tree"
)

// Spec says what to copy.
type Spec struct {
	// Sources are paths relative to the tree's root, with or without a leading
	// slash, with wildcards as in path.Match.
	Sources []string
	// Inline are here-documents; they follow the sources.
	Inline []InlineFile
	// Context says that the tree is a build context: its files are owned by 0:0
	// whoever owns them on the host.
	Context bool
}

// InlineFile is a file of mode 0644 whose content stands in the Dockerfile.
type InlineFile struct {
	Name string
	Data string
}

// Selection is what a Spec names in a tree. The tree must not change until it
// was digested or applied.
type Selection struct {
	src     tree.Tree
	context bool
	items   []item
}

// item is one selected source.
type item struct {
	// source is the word that named it, for messages.
	source string
	// name is what a file is called inside a destination directory.
	name string
	// path is where it is in the tree, links followed; entry is what is there.
	path   string
	entry  tree.Entry
	inline *InlineFile
}

// Empty reports whether nothing was selected, which happens when every source
// is a wildcard that matches nothing. Applying it changes nothing.
func (s *Selection) Empty() bool { return len(s.items) == 0 }

// Paths returns the selected paths of the tree in the order they are copied.
func (s *Selection) Paths() []string {
	var paths []string
	for _, it := range s.items {
		if it.inline == nil {
			paths = append(paths, it.path)
		}
	}
	return paths
}

// owned returns e with the owner that counts.
func (s *Selection) owned(e tree.Entry) tree.Entry {
	if s.context {
		e.UID, e.GID = 0, 0
	}
	return e
}

// NotFoundError says that a source names nothing in the tree. It matches
// fs.ErrNotExist.
type NotFoundError struct {
	// Source is the word as given in the Spec.
	Source string
	// Missing is the part of the path that does not exist, links followed.
	Missing string
	// Suggestions are similar paths that do exist, best first, at most three.
	Suggestions []string
}

func (e *NotFoundError) Error() string { return fmt.Sprintf("%s: no such file or directory", e.Source) }

// OwnerError says that the id mapping of this user namespace, or the lack of
// privileges, does not allow a file to have its owner.
type OwnerError struct {
	// Path is where the file goes in the image, without a leading slash.
	Path     string
	UID, GID uint32
	Err      error
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("chown /%s to %d:%d: not possible with the user ids of this host's user", strings.TrimPrefix(e.Path, "/"), e.UID, e.GID)
}

// Unwrap returns the system's error.
func (e *OwnerError) Unwrap() error { return e.Err }

// SeveralError says that several sources would become one file, of which the
// last would be left.
type SeveralError struct {
	// Path is the place in the image, without a leading slash.
	Path string
}

func (e *SeveralError) Error() string { return "several sources for one file: /" + e.Path }

// ReplaceError says that something else was to be copied to where a directory is.
type ReplaceError struct {
	// Path is the place in the image, without a leading slash.
	Path string
}

func (e *ReplaceError) Error() string { return "cannot replace directory /" + e.Path + " with file" }

// ArchiveError is an archive that ADD can't unpack because its bytes are damaged.
type ArchiveError struct{ Err error }

func (e *ArchiveError) Error() string { return e.Err.Error() }

// Unwrap returns what is wrong with it.
func (e *ArchiveError) Unwrap() error { return e.Err }

// ConflictError says that a directory was to be copied to where something else
// is that is no directory.
type ConflictError struct {
	// Path is the place in the image, without a leading slash.
	Path string
}

func (e *ConflictError) Error() string { return "cannot copy to non-directory: /" + e.Path }
