package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	docker "go.podman.io/image/v5/docker/reference"

	"github.com/mstage/mstage/pkg/reference"
)

// The media types of manifests. Source: OCI image-spec v1.1, media-types.md, and
// docker's image manifest v2, schema 2.
const (
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

const (
	// maxConfigBytes bounds an image config; real ones have some KiB.
	maxConfigBytes = 8 << 20
	// maxIndexDepth is how many indexes may lead to a manifest. One is usual.
	maxIndexDepth = 2
)

// Descriptor is a blob of a repository.
type Descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	SizeBytes int64  `json:"size"`
}

// Image is what a registry has under a reference for one platform.
type Image struct {
	// Ref is the name that it was asked for by.
	Ref reference.Reference
	// Digest is the manifest's; IndexDigest that of the index which led to it,
	// "" without one.
	Digest, IndexDigest string
	MediaType           string
	// Manifest is the exact bytes, verified.
	Manifest []byte
	endpoint endpoint
}

// Resolve returns the image of a reference for a platform, "os/arch[/variant]".
// Mirrors are asked first; the error is that of the registry itself. Nothing but manifests is downloaded.
func (c *Client) Resolve(ctx context.Context, ref reference.Reference, platform string) (*Image, error) {
	endpoints, err := c.endpoints(ref)
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, e := range endpoints {
		img, err := c.resolveAt(ctx, e, ref, platform)
		if err == nil {
			return img, nil
		}
		err = explain(ctx, ref.String(), e.host(), err)
		if ctx.Err() != nil {
			return nil, err
		}
		errs = append(errs, err)
	}
	return nil, worst(errs)
}

// worst is the error to show of several places' errors: the last one, which is
// the registry's own. What kept a mirror from answering stands behind it: it may
// be the only place that has the image.
func worst(errs []error) error {
	last := errs[len(errs)-1]
	e, ok := errors.AsType[*Error](last)
	if !ok {
		return last
	}
	told := *e
	for _, err := range errs[:len(errs)-1] {
		if mirror, ok := errors.AsType[*Error](err); ok && mirror.Kind != NotFound {
			told.Message += "; mirror: " + mirror.Message
		}
	}
	return &told
}

// resolveAt asks one place.
func (c *Client) resolveAt(ctx context.Context, e endpoint, ref reference.Reference, platform string) (*Image, error) {
	s, err := c.session(ctx, e)
	if err != nil {
		return nil, err
	}
	img := &Image{Ref: ref, endpoint: e}
	wanted, digest := version(e.ref)
	for range maxIndexDepth + 1 {
		raw, mediaType, err := s.manifest(ctx, ref.String(), wanted, digest)
		if err != nil {
			return nil, err
		}
		if !isIndex(mediaType) {
			img.Manifest, img.MediaType, img.Digest = raw, mediaType, digestOf(raw)
			return img, nil
		}
		if img.IndexDigest == "" {
			img.IndexDigest = digestOf(raw)
		}
		if digest, err = choose(ref.String(), raw, platform); err != nil {
			return nil, err
		}
		wanted = digest
	}
	return nil, &Error{Kind: Server, Ref: ref.String(), Message: fmt.Sprintf("indexes are nested more than %d deep", maxIndexDepth)}
}

// version is the tag or digest of a reference; digest is "" for a tag.
func version(ref docker.Named) (wanted, digest string) {
	if d, ok := ref.(docker.Canonical); ok {
		return d.Digest().String(), d.Digest().String()
	}
	if t, ok := ref.(docker.Tagged); ok {
		return t.Tag(), ""
	}
	return reference.DefaultTag, ""
}

// manifest downloads a manifest or index. digest is "" for a tag: then there is
// nothing to verify it against.
func (s *session) manifest(ctx context.Context, ref, wanted, digest string) (raw []byte, mediaType string, err error) {
	header := http.Header{"Accept": {typeOCIManifest, typeOCIIndex, typeDockerManifest, typeDockerList}}
	resp, err := s.get(ctx, "manifests/"+wanted, header, http.StatusOK)
	if err != nil {
		return nil, "", err
	}
	mediaType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
	if raw, err = read(resp); err != nil {
		return nil, "", err
	}
	if digest != "" && digestOf(raw) != digest {
		return nil, "", mismatch(ref, "manifest", digest, digestOf(raw))
	}
	return checkManifest(ref, raw, strings.TrimSpace(mediaType))
}

// checkManifest tells the type of a manifest: its own word counts, the header
// helps where it has none. Both saying different things is an attack on those
// who go by the other. Source: OCI distribution-spec v1.1, and CVE-2021-41190.
func checkManifest(ref string, raw []byte, announced string) ([]byte, string, error) {
	var m struct {
		MediaType     string          `json:"mediaType"`
		SchemaVersion int             `json:"schemaVersion"`
		Manifests     json.RawMessage `json:"manifests"`
		Layers        json.RawMessage `json:"layers"`
	}
	fail := func(format string, args ...any) ([]byte, string, error) {
		return nil, "", &Error{Kind: Server, Ref: ref, Message: fmt.Sprintf(format, args...)}
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return fail("manifest is no JSON: %v", err)
	}
	mediaType := cmp.Or(m.MediaType, announced)
	switch {
	case m.SchemaVersion == 1:
		return fail("manifest of docker's schema 1, which is not supported: push the image again with a newer docker")
	case m.Manifests != nil && m.Layers != nil:
		return fail("manifest is an image and an index at once")
	case known(m.MediaType) && known(announced) && m.MediaType != announced:
		return fail("manifest calls itself %s and was sent as %s", m.MediaType, announced)
	case isIndex(mediaType) && m.Manifests != nil, isImage(mediaType) && m.Layers != nil:
		return raw, mediaType, nil
	}
	return fail("%.100q is not the type of an image", mediaType)
}

func isIndex(mediaType string) bool { return mediaType == typeOCIIndex || mediaType == typeDockerList }

func isImage(mediaType string) bool {
	return mediaType == typeOCIManifest || mediaType == typeDockerManifest
}

func known(mediaType string) bool { return isIndex(mediaType) || isImage(mediaType) }

// Config downloads the config that an image's manifest names, and verifies it.
func (c *Client) Config(ctx context.Context, img *Image) ([]byte, error) {
	var m struct {
		Config Descriptor `json:"config"`
	}
	if err := json.Unmarshal(img.Manifest, &m); err != nil {
		return nil, &Error{Kind: Server, Ref: img.Ref.String(), Message: "manifest: " + err.Error(), Err: err}
	}
	if m.Config.SizeBytes < 0 || m.Config.SizeBytes > maxConfigBytes {
		return nil, &Error{
			Kind: Mismatch, Ref: img.Ref.String(),
			Message: fmt.Sprintf("image config of %d bytes, the limit is %d", m.Config.SizeBytes, maxConfigBytes),
		}
	}
	blob, err := c.Blob(ctx, img, m.Config)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	raw, err := io.ReadAll(blob) // not more than announced
	if err != nil {
		return nil, err
	}
	if got := digestOf(raw); got != m.Config.Digest {
		return nil, mismatch(img.Ref.String(), "image config", m.Config.Digest, got)
	}
	return raw, nil
}

func mismatch(ref, what, want, got string) error {
	return &Error{
		Kind: Mismatch, Ref: ref, Message: fmt.Sprintf("%s is %s, want %s", what, got, want),
		Hint: "the registry or something between changed it",
	}
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// checkDigest refuses what can't stand in a URL.
func checkDigest(d string) error {
	digits, ok := strings.CutPrefix(d, "sha256:")
	if !ok || len(digits) != 64 || strings.Trim(digits, "0123456789abcdef") != "" {
		return fmt.Errorf("%.100q is not a sha256 digest", d)
	}
	return nil
}

// indexEntry is one manifest of an index.
type indexEntry struct {
	Descriptor

	Platform *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

// maxListed is how many platforms an error lists.
const maxListed = 20

// choose returns the digest of an index's manifest for a platform: the same
// variant first, then one without a variant, then the highest that this one
// includes. An index with a single manifest for nobody in particular is for all.
func choose(ref string, index []byte, platform string) (string, error) {
	var list struct {
		Manifests []indexEntry `json:"manifests"`
	}
	if err := json.Unmarshal(index, &list); err != nil {
		return "", &Error{Kind: Server, Ref: ref, Message: "index: " + err.Error(), Err: err}
	}
	osName, arch, _ := strings.Cut(platform, "/")
	arch, variant, _ := strings.Cut(arch, "/")
	var fitting []indexEntry
	var others []string
	for _, m := range list.Manifests {
		switch {
		case m.Platform == nil:
		case m.Platform.OS == osName && m.Platform.Architecture == arch && includes(arch, variant, m.Platform.Variant):
			fitting = append(fitting, m)
		case m.Platform.OS != "unknown": // those are attestations
			others = append(others, strings.TrimSuffix(m.Platform.OS+"/"+m.Platform.Architecture+"/"+m.Platform.Variant, "/"))
		}
	}
	if len(fitting) == 0 && len(list.Manifests) == 1 && list.Manifests[0].Platform == nil {
		fitting = list.Manifests
	}
	if len(fitting) == 0 {
		return "", &Error{Kind: NotFound, Ref: ref, Message: "no image for " + platform + "; there are: " + listed(others)}
	}
	best := slices.MaxFunc(fitting, func(a, b indexEntry) int { return cmp.Compare(rank(variant, a), rank(variant, b)) })
	if err := checkDigest(best.Digest); err != nil {
		return "", &Error{Kind: Server, Ref: ref, Message: "index: " + err.Error(), Err: err}
	}
	return best.Digest, nil
}

// listed joins names that a registry made up.
func listed(names []string) string {
	more := ""
	if len(names) > maxListed {
		names, more = names[:maxListed], ", …"
	}
	return cmp.Or(oneLine(strings.Join(names, ", ")), "none") + more
}

// includes reports whether a processor of this variant runs images of another.
func includes(arch, variant, other string) bool {
	if variant == "" {
		variant = map[string]string{"arm64": "v8", "amd64": "v1", "arm": "v7"}[arch]
	}
	return other == "" || other <= variant
}

// rank orders the manifests that fit.
func rank(variant string, e indexEntry) string {
	switch {
	case e.Platform == nil || e.Platform.Variant == "":
		return "y"
	case e.Platform.Variant == variant:
		return "z"
	}
	return e.Platform.Variant
}
