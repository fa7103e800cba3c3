package pluginapi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Names for Description.Capabilities that the engine knows.
const (
	// CapabilityStages: the answer depends on Request.Stages, Use or Position,
	// so the source is asked at every place. Other sources are asked once about
	// a word and platform, with the Use and Position of the first place and
	// without Stages.
	CapabilityStages = "stages"
	// CapabilityNetwork: Resolve may reach a network. The source is not asked
	// about a word that looks like a misspelt stage name, nor while offline.
	CapabilityNetwork = "network"
)

// ErrNoContent is wrapped by Fetch of a source that never answers Content.
var ErrNoContent = errors.New("the source has no content to fetch")

// NoContent is embedded by sources that answer stages and images only.
type NoContent struct{}

// Fetch refuses; the error wraps ErrNoContent.
func (NoContent) Fetch(_ context.Context, r Resolved, _ Selection, _ Receiver) error {
	return fmt.Errorf("fetch %q: %w", r.Reference, ErrNoContent)
}

// IsNotFound reports whether an error of Resolve says that the next source is to
// be asked. A refusal ends the look-up, whatever its cause.
func IsNotFound(err error) bool {
	var refusal *Error
	return errors.Is(err, ErrNotFound) && !errors.As(err, &refusal)
}

// Check reports what is wrong with r as the answer to q: it is not exactly one
// kind, it names a stage that q does not list, a digest is malformed, or it is
// not the locked one.
func (r Resolved) Check(q Request) error {
	kinds := 0
	for _, set := range []bool{r.Stage != nil, r.Image != "", r.Content != nil} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return fmt.Errorf("answer for %q is %d of stage, image and content, not one", q.Reference, kinds)
	case r.Reference == "":
		return fmt.Errorf("answer for %q has no reference", q.Reference)
	case r.Stage != nil:
		return checkStage(*r.Stage, q)
	case r.Image != "":
		return checkDigest(r.Image)
	}
	if err := checkDigest(r.Content.Digest); err != nil {
		return err
	}
	if err := r.Content.check(); err != nil {
		return fmt.Errorf("answer for %q: %w", q.Reference, err)
	}
	if q.LockedDigest != "" && r.Content.Digest != q.LockedDigest {
		return fmt.Errorf("answer for %q is %s, locked is %s", q.Reference, r.Content.Digest, q.LockedDigest)
	}
	return nil
}

// check reports a manifest that is not what the digest says.
func (c *Content) check() error {
	if c.Manifest == nil {
		return nil
	}
	if c.Config == nil {
		return errors.New("it has a manifest but no config")
	}
	sum := sha256.Sum256(c.Manifest)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != c.Digest {
		return fmt.Errorf("its manifest has the digest %s, not %s", got, c.Digest)
	}
	return nil
}

func checkStage(index int, q Request) error {
	for _, s := range q.Stages {
		if s.Index == index {
			return nil
		}
	}
	return fmt.Errorf("answer for %q is stage %d, which can't be named here", q.Reference, index)
}

func checkDigest(s string) error {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return fmt.Errorf("answer's digest %q is not sha256 in hex", s)
	}
	return nil
}
