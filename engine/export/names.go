package export

import (
	"fmt"
	"slices"
	"strings"
)

// tag is one name of an image.
type tag struct {
	// full is the normalised reference: "docker.io/library/busybox:1".
	full string
	// repo and version are the parts of the form that docker shows: "busybox", "1".
	repo, version string
}

// familiar returns the name as docker shows it.
func (t tag) familiar() string { return t.repo + ":" + t.version }

// parseNames splits normalised references with a tag. The result is sorted and
// has each name once.
func parseNames(names []string) ([]tag, error) {
	var tags []tag
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		at := strings.LastIndexByte(name, ':')
		if at <= 0 || at == len(name)-1 || strings.ContainsAny(name[at:], "/@") || strings.Contains(name, "@") {
			return nil, fmt.Errorf("name %q is not a reference with a tag", name)
		}
		repo := strings.TrimPrefix(name[:at], "docker.io/")
		repo = strings.TrimPrefix(repo, "library/")
		if !strings.HasPrefix(name, "docker.io/") {
			repo = name[:at]
		}
		tags = append(tags, tag{full: name, repo: repo, version: name[at+1:]})
	}
	return tags, nil
}
