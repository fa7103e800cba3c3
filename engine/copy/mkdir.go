package copy

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"

	"github.com/mstage/mstage/storage"
	"github.com/mstage/mstage/storage/tree"
)

// Mkdir writes a directory with its missing parents into the staged layer, as
// WORKDIR makes it: mode 0755 and owner for what is missing, as the chain shows
// it for what exists. Owner nil is 0:0, and below a directory with the setgid bit
// its group.
func Mkdir(dst Dest, owner *Owner) (err error) {
	s, err := openStage(dst.Chain, dst.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if _, err := s.mkdirs(dst.Path, newDirs{dirMode, owner}); err != nil {
		return err
	}
	return s.finish()
}

// FileDigest returns a function for Selection.Digest that reads each file of t,
// until ctx ends.
func FileDigest(ctx context.Context, t tree.Tree) func(tree.Entry) (storage.Digest, error) {
	return func(e tree.Entry) (storage.Digest, error) {
		f, err := t.Open(e.Path)
		if err != nil {
			return "", err
		}
		defer f.Close()
		d := &digestReader{ctx: ctx, r: f, h: sha256.New()}
		_, err = io.Copy(io.Discard, d)
		return d.sum().digest, err
	}
}
