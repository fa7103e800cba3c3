// Package registry is a client of image registries: it turns a reference into a
// verified manifest, config and blob streams, and pushes images.
//
// Where a name is really looked up is said by containers-registries.conf(5):
// short names, mirrors, rewritten locations, insecure and blocked registries.
// Credentials come from containers-auth.json(5) and docker's config.json with
// their helpers; certificates from certs.d directories as in
// containers-certs.d(5). Nothing is read from the environment but what those
// formats say themselves; Options has the rest.
//
// Source: OCI distribution-spec v1.1.
package registry

import (
	"net/http"
	"sync"
	"time"

	"go.podman.io/image/v5/types"
)

// Options say where a Client finds its configuration. The zero value is what
// podman and docker use.
type Options struct {
	// AuthFile is read, and written by Login, instead of the usual files.
	AuthFile string
	// DockerConfig is docker's config.json: its credsStore is asked when no file
	// has credentials. "" is none.
	DockerConfig string
	// NoRuntimeDir is for users without a runtime directory (XDG_RUNTIME_DIR):
	// containers' usual auth.json would be below /run, where they may not look.
	// When set and AuthFile is "", DockerConfig is read after the auth.json of the
	// user's config directory, and written by Login.
	NoRuntimeDir bool
	// RegistriesConf replaces the user's and the system's registries.conf.
	RegistriesConf string
	// CertDirs are searched for HOST[:PORT]/{*.crt,*.cert,*.key}; the first that
	// has the host counts. Nil: the user's containers/certs.d, then those below
	// /etc/containers and /etc/docker.
	CertDirs []string
	// CertDir is a directory with the certificates for every registry, instead
	// of those in CertDirs.
	CertDir string
	// Credentials are used instead of those that files have.
	Credentials *Credentials
	// CABundle is a file of certificates to trust as well as the system's.
	CABundle string
	// Insecure allows plain HTTP and certificates that nobody vouches for.
	Insecure bool
	// UserAgent is sent with every request.
	UserAgent string
	// Stall is how long a registry may be silent. Zero: 60 s.
	Stall time.Duration
}

// defaultStall is what slow registries need to find a blob in cold storage.
const defaultStall = time.Minute

// Client talks to registries. Safe for concurrent use. Connections and tokens
// are kept for the client's life.
type Client struct {
	o   Options
	sys *types.SystemContext
	// resumeAfter is the first pause before a broken download goes on.
	resumeAfter time.Duration

	mu    sync.Mutex
	hosts map[string]*http.Transport // guarded by mu: by host[:port]
	repos map[string]*session        // guarded by mu: by repository
}

// New returns a client. Nothing is read or asked yet.
func New(o Options) *Client {
	if o.Stall == 0 {
		o.Stall = defaultStall
	}
	if o.CertDirs == nil {
		o.CertDirs = defaultCertDirs()
	}
	sys := &types.SystemContext{
		AuthFilePath:                o.AuthFile,
		SystemRegistriesConfPath:    o.RegistriesConf,
		SystemRegistriesConfDirPath: confDir(o.RegistriesConf),
	}
	if o.Credentials != nil {
		sys.DockerAuthConfig = &types.DockerAuthConfig{Username: o.Credentials.User, Password: o.Credentials.Password}
	}
	return &Client{
		o:           o,
		sys:         sys,
		resumeAfter: resumeAfter,
		hosts:       map[string]*http.Transport{},
		repos:       map[string]*session{},
	}
}

// confDir keeps the system's drop-in files out when the main file is replaced.
func confDir(conf string) string {
	if conf == "" {
		return ""
	}
	return conf + ".d"
}
