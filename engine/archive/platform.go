package archive

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// platform is what an image is for. Source: OCI image-spec v1.1, image-index.md.
type platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant"`
}

// parsePlatform reads "linux/arm64" or "linux/arm/v7".
func parsePlatform(s string) (platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return platform{}, fmt.Errorf("platform %q is not of the form OS/ARCH[/VARIANT]", s)
	}
	p := platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p.normal(), nil
}

// normal leaves out the variant that every processor of an architecture has.
// Source: containerd's platforms package.
func (p platform) normal() platform {
	if p.Architecture == "arm64" && p.Variant == "v8" || p.Architecture == "amd64" && p.Variant == "v1" {
		p.Variant = ""
	}
	return p
}

func (p platform) String() string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

func comparePlatforms(a, b platform) int { return cmp.Compare(a.String(), b.String()) }

// distinct returns the platforms that are known, sorted, each once.
func distinct(ps []platform) []platform {
	known := slices.DeleteFunc(slices.Clone(ps), func(p platform) bool { return p == platform{} })
	slices.SortFunc(known, comparePlatforms)
	return slices.Compact(known)
}

// pick returns the indexes of what is for p or for nobody knows what, an exact
// match first; all of them unless there are several platforms.
func (p platform) pick(have []platform) ([]int, error) {
	several := distinct(have)
	var picked []int
	for i, h := range have {
		switch {
		case len(several) > 1 && h == p:
			picked = slices.Insert(picked, 0, i)
		case len(several) < 2 || h == platform{} || p.accepts(h):
			picked = append(picked, i)
		}
	}
	if len(have) > 0 && len(picked) == 0 {
		words := make([]string, len(several))
		for i, s := range several {
			words[i] = s.String()
		}
		return nil, &Error{
			Err:  fmt.Errorf("image is for %s and not for %s", strings.Join(words, ", "), p),
			Hint: "--platform chooses another",
		}
	}
	return picked, nil
}

// accepts reports whether an image for o is what was asked for. Without a variant
// any is.
func (p platform) accepts(o platform) bool {
	return p.OS == o.OS && p.Architecture == o.Architecture && (p.Variant == "" || p.Variant == o.Variant)
}

// unknownPlatform is what BuildKit writes for what is no image.
const unknownPlatform = "unknown"

// announced returns the platform that a line of an index tells, the zero value
// for none.
func (d descriptor) announced() platform {
	if d.Platform == nil || d.Platform.OS == "" || d.Platform.OS == unknownPlatform {
		return platform{}
	}
	return d.Platform.normal()
}

// platformOf returns what an image is for, by its line in the index or else its
// config.
func platformOf(d descriptor, config []byte) platform {
	if p := d.announced(); p != (platform{}) {
		return p
	}
	var p platform
	if err := json.Unmarshal(config, &p); err != nil {
		return platform{} // the config was parsed before
	}
	return p.normal()
}
