package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	docker "go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/sysregistriesv2"

	"github.com/mstage/mstage/pkg/reference"
)

// Names returns the full names that a word may stand for, in the order in which
// they are tried: an alias of registries.conf, else the word at each of its
// unqualified-search-registries, else docker's reading. A word with a domain
// stands for itself.
func (c *Client) Names(word string) ([]reference.Reference, error) {
	ref, err := reference.Parse(word)
	if err != nil {
		return nil, err
	}
	ref = ref.WithDefaultTag()
	if qualified(word) {
		return []reference.Reference{ref}, nil
	}
	short, rest := ref.FamiliarName(), strings.TrimPrefix(ref.String(), ref.Name())
	alias, origin, err := c.alias(short)
	if err != nil {
		return nil, confError(word, err)
	}
	if alias != nil {
		full, err := reference.Parse(alias.Name() + rest)
		if err != nil {
			return nil, confError(word, fmt.Errorf("alias in %s: %w", origin, err))
		}
		return []reference.Reference{full}, nil
	}
	search, err := sysregistriesv2.UnqualifiedSearchRegistries(c.sys)
	if err != nil {
		return nil, confError(word, err)
	}
	if len(search) == 0 {
		return []reference.Reference{ref}, nil
	}
	var names []reference.Reference
	for _, host := range search {
		full, err := reference.Parse(host + "/" + short + rest)
		if err != nil {
			return nil, confError(word, fmt.Errorf("unqualified-search-registries: %w", err))
		}
		names = append(names, full)
	}
	return names, nil
}

// alias returns what registries.conf, or podman's own list of what its user chose,
// says that a short name stands for; nil when neither has it. The library locks a
// file beside that list and makes both: on a copy, because a look-up must not write
// to a home directory, which may be read-only.
func (c *Client) alias(short string) (alias docker.Named, origin string, err error) {
	dir, err := os.MkdirTemp("", "mstage-aliases-")
	if err != nil {
		return nil, "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sys := *c.sys
	sys.UserShortNameAliasConfPath = filepath.Join(dir, "short-name-aliases.conf")
	if cache, err := os.UserCacheDir(); err == nil {
		chosen, err := os.ReadFile(filepath.Join(cache, "containers", "short-name-aliases.conf"))
		if err == nil {
			err = os.WriteFile(sys.UserShortNameAliasConfPath, chosen, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return nil, "", err
		}
	}
	return sysregistriesv2.ResolveShortNameAlias(&sys, short)
}

// qualified reports whether a word names its registry.
func qualified(word string) bool {
	first, _, slash := strings.Cut(word, "/")
	return slash && (first == "localhost" || strings.ContainsAny(first, ".:"))
}

func confError(ref string, err error) error {
	return &Error{Kind: Config, Ref: ref, Message: "registries.conf: " + err.Error(), Err: err}
}

// endpoint is one place where an image may be.
type endpoint struct {
	// ref is the image's name there, after rewriting.
	ref      docker.Named
	insecure bool
	// mirror says that the host is not the one of the reference: credentials
	// that were given for this one are not for it.
	mirror bool
}

// host is who is asked.
func (e endpoint) host() string { return docker.Domain(e.ref) }

// endpoints returns the mirrors of a reference in order, then its own place.
func (c *Client) endpoints(ref reference.Reference) ([]endpoint, error) {
	named, err := dockerName(ref)
	if err != nil {
		return nil, err
	}
	conf, err := c.find(named)
	if err != nil {
		return nil, err
	}
	if conf == nil {
		return []endpoint{{ref: named, insecure: c.o.Insecure}}, nil
	}
	sources, err := conf.PullSourcesFromReference(named)
	if err != nil {
		return nil, confError(ref.String(), err)
	}
	// The last one is the registry itself, at its location.
	primary := docker.Domain(sources[len(sources)-1].Reference)
	var list []endpoint
	for _, s := range sources {
		list = append(list, endpoint{
			ref: s.Reference, insecure: s.Endpoint.Insecure || c.o.Insecure,
			mirror: docker.Domain(s.Reference) != primary,
		})
	}
	return list, nil
}

// own is a name's own place, past mirrors and locations: where a push or a login
// goes.
func (c *Client) own(named docker.Named) (endpoint, error) {
	e := endpoint{ref: named, insecure: c.o.Insecure}
	conf, err := c.find(named)
	if err == nil && conf != nil {
		e.insecure = e.insecure || conf.Insecure
	}
	return e, err
}

// find returns the section of registries.conf for a name, nil without one.
func (c *Client) find(named docker.Named) (*sysregistriesv2.Registry, error) {
	conf, err := sysregistriesv2.FindRegistry(c.sys, named.Name())
	if err != nil {
		return nil, confError(named.String(), err)
	}
	if conf != nil && conf.Blocked {
		return nil, &Error{
			Kind: Blocked, Ref: named.String(), Message: "registry " + conf.Prefix + " is blocked",
			Hint: "registries.conf says blocked=true for it",
		}
	}
	return conf, nil
}

// dockerName is a reference as the libraries know it. With tag and digest the
// digest alone counts, as everywhere.
func dockerName(ref reference.Reference) (docker.Named, error) {
	if ref.Digest != "" {
		ref.Tag = ""
	}
	named, err := docker.ParseNormalizedNamed(ref.String())
	if err != nil {
		return nil, err
	}
	if docker.IsNameOnly(named) {
		return nil, errors.New("reference " + ref.String() + " has neither tag nor digest")
	}
	return named, nil
}
