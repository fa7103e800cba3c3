package main

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// xattrPrefix begins the PAX records that hold extended attributes.
const xattrPrefix = "SCHILY.xattr."

// shortBytes is up to which size content is kept.
const shortBytes = 512

// inode is what names of a tree point at.
type inode struct {
	kind       byte // as in a tar header
	mode       int64
	uid, gid   int
	size       int64
	hash, link string
	text       string // content, when it is short
	dev        [2]int64
	mtime      time.Time
	xattrs     map[string]string
}

// fileTree is a root file system by path without slashes at either end. Hard
// links are paths with the same inode.
type fileTree map[string]*inode

// cleanName returns an entry's name as a fileTree has it.
func cleanName(name string) string { return strings.Trim(path.Clean("/"+name), "/") }

// applyLayer applies a layer and returns its names but the root's, which BuildKit
// never has in a layer. Source: OCI image-spec v1.1,
// layer.md: whiteouts hide what lower layers have, wherever they are in the tar.
func (t fileTree) applyLayer(data []byte) ([]string, error) {
	r, err := inflate(data)
	if err != nil {
		return nil, err
	}
	var names []string
	added := map[string]bool{}
	err = readTar(r, func(h *tar.Header, r io.Reader) error {
		name := cleanName(h.Name)
		if name != "" {
			names = append(names, name)
		}
		dir, base := path.Split(name)
		dir = strings.TrimSuffix(dir, "/")
		if base == ".wh..wh..opq" {
			t.removeBelow(dir, added)
			return nil
		}
		if hidden, ok := strings.CutPrefix(base, ".wh."); ok {
			victim := path.Join(dir, hidden)
			if !added[victim] {
				delete(t, victim)
			}
			t.removeBelow(victim, added)
			return nil
		}
		added[name] = true
		return t.add(name, h, r)
	})
	slices.Sort(names)
	return names, err
}

// removeBelow removes what is in a directory, but for the names of keep.
func (t fileTree) removeBelow(dir string, keep map[string]bool) {
	for name := range t {
		if name != "" && (dir == "" || strings.HasPrefix(name, dir+"/")) && !keep[name] {
			delete(t, name)
		}
	}
}

// add puts an entry into the tree. A file takes the place of a directory with
// all that it has.
func (t fileTree) add(name string, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeLink {
		target := t[cleanName(h.Linkname)]
		if target == nil {
			return fmt.Errorf("hard link %s to %s, which is missing", name, h.Linkname)
		}
		t[name] = target
		return nil
	}
	i, err := newInode(h, r)
	if err != nil {
		return err
	}
	if old := t[name]; old != nil && old.kind == tar.TypeDir && i.kind != tar.TypeDir {
		t.removeBelow(name, nil)
	}
	t[name] = i
	return nil
}

// newInode reads an entry.
func newInode(h *tar.Header, r io.Reader) (*inode, error) {
	sum := sha256.New()
	var text strings.Builder
	n, err := io.Copy(io.MultiWriter(sum, &text), io.LimitReader(r, shortBytes))
	if err != nil {
		return nil, err
	}
	more, err := io.Copy(sum, r)
	if err != nil {
		return nil, err
	}
	n += more
	i := &inode{
		kind: h.Typeflag, mode: h.Mode & 0o7777, uid: h.Uid, gid: h.Gid, size: n, link: h.Linkname,
		dev: [2]int64{h.Devmajor, h.Devminor}, mtime: h.ModTime, xattrs: map[string]string{},
	}
	if more == 0 {
		i.text = text.String()
	}
	if n > 0 {
		i.hash = hex.EncodeToString(sum.Sum(nil))[:12]
	}
	for k, v := range h.PAXRecords {
		if attr, ok := strings.CutPrefix(k, xattrPrefix); ok {
			i.xattrs[attr] = v
		}
	}
	return i, nil
}

// links returns for each path all the names of its inode, sorted.
func (t fileTree) links() map[string][]string {
	groups := map[*inode][]string{}
	for name, i := range t {
		groups[i] = append(groups[i], name)
	}
	out := map[string][]string{}
	for _, names := range groups {
		slices.Sort(names)
		for _, n := range names {
			out[n] = names
		}
	}
	return out
}

// withoutRoot returns a tree without its root directory.
func (t fileTree) withoutRoot() fileTree {
	t = maps.Clone(t)
	delete(t, "")
	return t
}

// forgetTimes makes all times equal.
func (t fileTree) forgetTimes() {
	for _, i := range t {
		i.mtime = time.Time{}
	}
}
