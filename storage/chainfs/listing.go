package chainfs

import (
	"path"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/storage/tree"
)

// listing is what the layers together show in one directory.
type listing struct {
	// layers contribute to the directory, uppermost first. The first one's
	// inode is the directory's own.
	layers []int
	names  map[string]place
}

// place says where a visible name is.
type place struct {
	layer int
	typ   uint32 // unix.S_IFMT bits
	// below are further layers in which a directory merges, uppermost first.
	below []int
}

// layers returns all layers in which the name is part of the view.
func (p place) layers() []int { return append([]int{p.layer}, p.below...) }

// list returns the listing of the directory name; the error wraps
// fs.ErrNotExist when it isn't a directory of the view.
func (v *View) list(name string) (*listing, error) {
	if l := v.remembered(name); l != nil {
		return l, nil
	}
	if name == "." {
		return v.remember(name, v.allLayers())
	}
	parent, err := v.list(path.Dir(name))
	if err != nil {
		return nil, err
	}
	p, ok := parent.names[path.Base(name)]
	if !ok || p.typ != unix.S_IFDIR {
		return nil, notExist("open", name)
	}
	return v.remember(name, p.layers())
}

func (v *View) allLayers() []int {
	layers := make([]int, len(v.dirs))
	for i := range layers {
		layers[i] = len(v.dirs) - 1 - i
	}
	return layers
}

func (v *View) remembered(name string) *listing {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.memo[name]
}

func (v *View) remember(name string, candidates []int) (*listing, error) {
	l, err := v.merge(name, candidates)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.names+len(l.names) > maxMemoNames {
		v.memo, v.names = map[string]*listing{}, 0
	}
	if v.memo[name] == nil {
		v.names += len(l.names)
	}
	v.memo[name] = l
	return l, nil
}

// merge reads one directory in every layer that may contribute to it.
func (v *View) merge(name string, candidates []int) (*listing, error) {
	m := merger{listing: &listing{names: map[string]place{}}, closed: map[string]bool{}}
	for _, layer := range candidates {
		fd, err := v.openDirAt(layer, name, unix.O_RDONLY)
		if err != nil {
			return nil, v.layerError(layer, name, err)
		}
		opaque, err := m.add(layer, fd)
		unix.Close(fd)
		if err != nil {
			return nil, v.layerError(layer, name, err)
		}
		// The kernel merges the roots of all layers whatever their attributes.
		if opaque && name != "." {
			break
		}
	}
	return m.listing, nil
}

// merger adds up the names of one directory, uppermost layer first.
type merger struct {
	*listing
	// closed names show nothing of the layers that are still to come.
	closed map[string]bool
}

// add takes one layer's part and reports whether it is opaque.
func (m *merger) add(layer, fd int) (opaque bool, err error) {
	mark := opaqueMark(fd)
	names, err := readNames(fd)
	if err != nil {
		return false, err
	}
	m.layers = append(m.layers, layer)
	for _, n := range names {
		if m.closed[n.name] {
			continue
		}
		hidden, typ, err := classify(fd, n, mark)
		if err != nil {
			return false, err
		}
		m.place(layer, n.name, typ, hidden)
	}
	return mark == opaqueYes, nil
}

// place records one name of a layer.
func (m *merger) place(layer int, name string, typ uint32, hidden bool) {
	p, seen := m.names[name]
	isDir := typ == tree.TypeDir && !hidden
	switch {
	case !seen && !hidden:
		m.names[name] = place{layer: layer, typ: typ}
	case seen && isDir:
		p.below = append(p.below, layer)
		m.names[name] = p
	}
	if !isDir {
		m.closed[name] = true
	}
}

// classify reports whether an entry of a layer is a whiteout, and its type.
func classify(fd int, n dirent, mark opaqueMarkValue) (hidden bool, typ uint32, err error) {
	typ = n.typ
	maybe := typ == 0 || typ == unix.S_IFCHR || (mark == opaqueXattrWhiteouts && typ == unix.S_IFREG)
	if !maybe {
		return false, typ, nil
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, n.name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return false, 0, err
	}
	typ = st.Mode & unix.S_IFMT
	switch {
	case typ == unix.S_IFCHR && st.Rdev == 0:
		return true, typ, nil
	case typ == unix.S_IFREG && st.Size == 0 && mark == opaqueXattrWhiteouts:
		return hasXattrAt(fd, n.name, xattrWhiteout), typ, nil
	}
	return false, typ, nil
}
