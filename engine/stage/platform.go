package stage

import (
	"fmt"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// Platform is "os/arch[/variant]" in parts.
type Platform struct{ OS, Arch, Variant string }

// String returns "os/arch[/variant]".
func (p Platform) String() string {
	s := p.OS + "/" + p.Arch
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// HostPlatform is the platform that this program runs on.
func HostPlatform() Platform {
	return normalArch(Platform{OS: runtime.GOOS, Arch: runtime.GOARCH})
}

var platformPart = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9_.-]+$`) })

// ParsePlatform reads "os/arch[/variant]", "arch" or "os" and returns the usual
// spelling: x86_64 is amd64, aarch64 and arm64/v8 are arm64, arm is arm/v7.
// Source: containerd's platforms package.
func ParsePlatform(s string) (Platform, error) {
	parts := strings.Split(strings.ToLower(s), "/")
	for _, part := range parts {
		if !platformPart().MatchString(part) {
			return Platform{}, fmt.Errorf("%q is not a platform", s)
		}
	}
	host := HostPlatform()
	switch {
	case len(parts) == 1 && slices.Contains([]string{"linux", "windows", "darwin", "freebsd"}, parts[0]):
		host.OS = parts[0]
		return host, nil
	case len(parts) == 1:
		return normalArch(Platform{OS: host.OS, Arch: parts[0]}), nil
	case len(parts) == 2:
		return normalArch(Platform{OS: parts[0], Arch: parts[1]}), nil
	case len(parts) == 3:
		return normalArch(Platform{OS: parts[0], Arch: parts[1], Variant: parts[2]}), nil
	}
	return Platform{}, fmt.Errorf("%q is not a platform", s)
}

// normalArch gives an architecture its usual name and variant.
func normalArch(p Platform) Platform {
	switch p.Arch {
	case "i386":
		p.Arch, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Arch = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Arch = "arm64"
		if p.Variant == "8" || p.Variant == "v8" {
			p.Variant = ""
		}
	case "armhf":
		p.Arch, p.Variant = "arm", "v7"
	case "armel":
		p.Arch, p.Variant = "arm", "v6"
	case "arm":
		if p.Variant == "" || p.Variant == "7" {
			p.Variant = "v7"
		} else if !strings.HasPrefix(p.Variant, "v") {
			p.Variant = "v" + p.Variant
		}
	}
	return p
}
