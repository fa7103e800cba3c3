package cache

import (
	"encoding/json"

	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// keyVersion stands in every key. It changes when an equal step must not hit
// what an older mstage recorded.
const keyVersion = 1

// Inputs are the identities of what a step reads besides its own text.
type Inputs struct {
	// Chain is the identity of the layers below the step.
	Chain storage.Digest
	// Source is the identity of the chain that a COPY --from reads from, or the
	// digest of the files that a COPY from the build context selects.
	Source storage.Digest
	// Mounts are the identities of RUN's mounts, in order; "" for a mount whose
	// content is not part of the key (cache, tmpfs, secret).
	Mounts []storage.Digest
}

// ChainIdentity stands for layers in keys: a digest over their identities.
// No layer at all has an identity too.
func ChainIdentity(layers []storage.Layer) storage.Digest {
	ids := make([]storage.Digest, len(layers))
	for i, l := range layers {
		ids[i] = l.Identity
	}
	return digest("chain", ids)
}

// StepKey is the key of a step whose inputs are known. For a COPY --from it is
// the fast key: no file is read for it.
func StepKey(s *plan.Step, platform string, in Inputs) storage.Digest {
	switch {
	case s.Run != nil:
		return runKey(s.Run, platform, in)
	case s.Copy != nil:
		return digest("copy", copyKey{copyShape(s.Copy), in.Chain, in.Source})
	default:
		return digest("workdir", struct {
			Workdir plan.Workdir
			Chain   storage.Digest
		}{*s.Workdir, in.Chain})
	}
}

// ShapeKey finds an earlier COPY --from with the same destination and flags
// whose source was another chain.
func ShapeKey(c *plan.Copy, chain storage.Digest) storage.Digest {
	return digest("copy-shape", copyKey{copyShape(c), chain, ""})
}

// ContentKey is the key of a COPY --from by the digest of the selected files.
func ContentKey(c *plan.Copy, chain, content storage.Digest) storage.Digest {
	return digest("copy-content", copyKey{copyShape(c), chain, content})
}

// CopyIdentity is the identity of the layer that a COPY from the build context
// made: it depends on the bytes and where they went, not on the layers below.
func CopyIdentity(c *plan.Copy, content storage.Digest) storage.Digest {
	return digest("copy-identity", copyKey{copyShape(c), "", content})
}

type copyKey struct {
	Copy          plan.Copy
	Chain, Source storage.Digest
}

// copyShape is the step without where its files come from: that is part of the
// key as an identity, and the number of a stage says nothing about its content.
func copyShape(c *plan.Copy) plan.Copy {
	shape := *c
	shape.From = plan.Source{}
	return shape
}

// runKey leaves out what doesn't belong to the result: proxy variables (KeyEnv
// has none), and what a mount shows, which in.Mounts stands for.
func runKey(r *plan.Run, platform string, in Inputs) storage.Digest {
	keyed := *r
	keyed.Env = nil
	keyed.Mounts = make([]plan.Mount, len(r.Mounts))
	for i, m := range r.Mounts {
		m.From = plan.Source{}
		keyed.Mounts[i] = m
	}
	return digest("run", struct {
		Run      plan.Run
		Platform string
		Chain    storage.Digest
		Mounts   []storage.Digest
	}{keyed, platform, in.Chain, in.Mounts})
}

// digest is the digest of a versioned canonical encoding: encoding/json writes
// struct fields in their order and map keys sorted.
func digest(kind string, v any) storage.Digest {
	b, err := json.Marshal(struct {
		Version int
		Kind    string
		Value   any
	}{keyVersion, kind, v})
	if err != nil {
		panic(err) // plain data always marshals
	}
	return storage.DigestBytes(b)
}
