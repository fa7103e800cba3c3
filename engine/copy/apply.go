package copy

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/chainfs"
	"github.com/mstage/mstage/storage/layertar"
	"github.com/mstage/mstage/storage/tree"
)

// Owner is a numeric owner.
type Owner struct{ UID, GID uint32 }

// Dest is where a Selection goes.
type Dest struct {
	// Chain is the view of the layers below the new one.
	Chain *chainfs.View
	// Dir is the new layer: an empty directory that becomes its diff directory.
	Dir string
	// Path is where to in the image; a trailing "/" says that it is a directory.
	Path string
}

// Options change how a Selection is written.
type Options struct {
	// Chown owns everything that is made. Nil keeps the source's owners (0:0
	// for a build context) and makes missing parents 0:0.
	Chown *Owner
	// Chmod is as for ParseChmod; it applies to files and directories.
	Chmod string
	// Unpack says that a selected file that is a tar archive, compressed or
	// not, is unpacked into the destination instead of copied.
	Unpack bool
	// HardLink is asked with a layer's index in the source, which is then a
	// *chainfs.View, whether that layer's inodes may become part of the
	// destination: only when the layer is not in the destination's chain, and
	// was not linked into it before. Several calls run at once. Nil copies
	// every byte.
	HardLink func(layer int) bool
	// NoDigest leaves Result.Digest empty, so that bytes needn't pass through
	// this process. It is implied by HardLink.
	NoDigest bool
}

// Result tells what Apply wrote.
type Result struct {
	// SizeBytes is the sum of the regular files' sizes, each inode once.
	SizeBytes int64
	// Digest is that of the bytes actually copied; it equals Selection.Digest
	// when nothing changed in between. "" with HardLink or NoDigest.
	Digest storage.Digest
	// Linked and Copied count names of regular files.
	Linked, Copied int
	// LinkedBytes is the part of SizeBytes that took no space.
	LinkedBytes int64
}

// Apply writes sel into the staged layer: as overlay content on top of the
// chain, each directory on the way repeated as the chain shows it. The layer is
// useless after an error. The error is an *OwnerError when an owner can't be
// had, and context.Cause(ctx) after a cancel.
func Apply(ctx context.Context, sel *Selection, dst Dest, o Options) (Result, error) {
	chmod, err := ParseChmod(o.Chmod)
	if err != nil {
		return Result{}, err
	}
	a := &apply{sel: sel, dst: dst, o: o, chmod: chmod, digests: !o.NoDigest && o.HardLink == nil}
	if len(sel.items) > 0 {
		err = a.run(ctx)
	}
	if err == nil && a.digests {
		a.result.Digest = a.total.digest()
	}
	return a.result, err
}

// apply is one Apply under way.
type apply struct {
	sel     *Selection
	dst     Dest
	o       Options
	chmod   Chmod
	digests bool
	stage   *stage
	total   total

	mu     sync.Mutex
	result Result
	// linkedBy tells which item brought an inode: no other may bring it again,
	// or two unrelated names would be the same file.
	linkedBy map[inode]*item
}

func (a *apply) run(ctx context.Context) (err error) {
	if a.stage, err = openStage(a.dst.Chain, a.dst.Dir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stage.close()) }()
	a.linkedBy = map[inode]*item{}
	for i := range a.sel.items {
		if err := a.item(ctx, &a.sel.items[i]); err != nil {
			return err
		}
	}
	return a.stage.finish()
}

// newDirs is what directories get that are made on the way: an octal --chmod is
// theirs too. Source: BuildKit, fsutil's copy package.
func (a *apply) newDirs() newDirs {
	if a.chmod.absolute {
		return newDirs{a.chmod.mode & 0o777, a.o.Chown}
	}
	return newDirs{dirMode, a.o.Chown}
}

// item copies one selected source.
func (a *apply) item(ctx context.Context, it *item) error {
	if it.entry.IsDir() {
		return a.tree(ctx, it)
	}
	if a.o.Unpack && it.inline == nil && it.entry.IsRegular() {
		done, err := a.unpackItem(ctx, it)
		if done || err != nil {
			return err
		}
	}
	dest, err := a.fileDest(it)
	if err != nil {
		return err
	}
	return a.file(ctx, it, dest)
}

// tree copies the content of a selected directory.
func (a *apply) tree(ctx context.Context, it *item) error {
	resolved, _, err := tree.Resolve(a.stage, within(a.dst.Path), true)
	if err != nil {
		return err
	}
	if e, err := a.stage.Lstat(resolved); err == nil && !e.IsDir() {
		return &ConflictError{Path: resolved}
	}
	dest, err := a.stage.mkdirs(a.dst.Path, a.newDirs())
	if err != nil {
		return err
	}
	a.takeTime(it, dest)
	t := &treeCopy{apply: a, item: it, sum: newSummary(), first: firsts{by: map[inode]*firstName{}}}
	if err := walk(ctx, dirPair{it.path, dest}, t.visit); err != nil {
		return err
	}
	if a.digests {
		a.total.dir(it.path, t.sum)
	}
	return nil
}

// takeTime gives the directory that a selected one is merged into its time, and
// nothing else, as BuildKit does. The roots of image and source have no time that
// means anything.
func (a *apply) takeTime(it *item, dest string) {
	if dest != "." && it.path != "." {
		a.stage.staged(dest).meta.mtime = it.entry.ModTime
	}
}

// fileDest makes the directory for a selected file and returns the file's path.
// A link at the end of the destination is followed, as in BuildKit.
func (a *apply) fileDest(it *item) (string, error) {
	if strings.HasSuffix(a.dst.Path, "/") {
		dir, err := a.stage.mkdirs(a.dst.Path, a.newDirs())
		return path.Join(dir, it.name), err
	}
	resolved, exists, err := tree.Resolve(a.stage, within(a.dst.Path), true)
	if err != nil {
		return "", err
	}
	into := false
	if exists {
		e, err := a.stage.Lstat(resolved)
		if err != nil {
			return "", err
		}
		into = e.IsDir()
	}
	switch {
	case into:
		resolved = path.Join(resolved, it.name)
	case len(a.sel.items) > 1:
		return "", &SeveralError{Path: resolved}
	}
	_, err = a.stage.mkdirs(path.Dir(resolved), a.newDirs())
	return resolved, err
}

// file copies one selected file to dest, whose directory is in the layer.
func (a *apply) file(ctx context.Context, it *item, dest string) error {
	if e, err := a.stage.Lstat(dest); err == nil && e.IsDir() {
		return &ReplaceError{Path: dest}
	}
	fd, err := a.stage.openDir(path.Dir(dest))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	w := writer{apply: a, item: it, destDir: path.Dir(dest), fd: fd}
	if it.inline != nil {
		sum, err := w.inline(ctx, it, path.Base(dest))
		a.total.file(it.name, sum)
		return err
	}
	if w.src, err = openSource(a.sel.src, path.Dir(it.path)); err != nil {
		return err
	}
	defer w.src.Close()
	e, err := w.src.Lstat(path.Base(it.path))
	if err != nil {
		return err
	}
	sum, err := w.node(ctx, e, path.Base(dest))
	a.add(w.tally)
	a.total.file(it.name, sum)
	return err
}

// unpackItem unpacks a selected file if it is a tar archive.
func (a *apply) unpackItem(ctx context.Context, it *item) (done bool, err error) {
	f, err := a.sel.src.Open(it.path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	if !layertar.DetectTar(f) {
		return false, nil
	}
	dest, err := a.stage.mkdirs(a.dst.Path, newDirs{dirMode, a.o.Chown})
	if err != nil {
		return true, err
	}
	content, err := a.unpack(ctx, f, dest)
	if err != nil {
		return true, fmt.Errorf("unpack %s: %w", it.source, err)
	}
	xattrs, err := a.sel.src.Xattrs(it.path)
	if err != nil {
		return true, err
	}
	e := a.sel.owned(it.entry)
	e.Size = content.bytes
	a.total.file(it.name, nodeSum(e, xattrs, content.digest))
	return true, nil
}

// metadata returns what a copy of e gets.
func (a *apply) metadata(e tree.Entry, xattrs map[string][]byte) metadata {
	e = a.sel.owned(e)
	m := metadataOf(e, xattrs)
	m.mode = a.chmod.Apply(e.Mode) & permMask
	if a.o.Chown != nil {
		m.uid, m.gid = a.o.Chown.UID, a.o.Chown.GID
	}
	return m
}

// changes reports whether a copy of e gets another mode or owner.
func (a *apply) changes(e tree.Entry) bool {
	m := a.metadata(e, nil)
	return m.mode != e.Mode&permMask || m.uid != e.UID || m.gid != e.GID
}

// mayLink reports whether the copy of e can be e's own inode, and takes the
// inode for the item.
func (a *apply) mayLink(it *item, e chainfs.Entry) bool {
	if a.o.HardLink == nil || e.Layer == noLayer || !e.IsRegular() || a.changes(e.Entry) || !a.o.HardLink(e.Layer) {
		return false
	}
	if len(a.sel.items) == 1 {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	id := inode{e.Dev, e.Ino}
	owner, taken := a.linkedBy[id]
	if !taken {
		a.linkedBy[id] = it
	}
	return !taken || owner == it
}

// tally is what one worker adds to the result.
type tally struct {
	size, linkedBytes int64
	linked, copied    int
}

func (a *apply) add(t tally) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.result.SizeBytes += t.size
	a.result.LinkedBytes += t.linkedBytes
	a.result.Linked += t.linked
	a.result.Copied += t.copied
}
