package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// debianTar is the tar of a minimal Debian, made from Debian's packages.
var debianTar = sync.OnceValues(func() (string, error) {
	dir, err := shared()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "debian.tar")
	out, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer out.Close()
	// Its namespace's users must get to its directory: a private home won't do.
	tmp, err := os.MkdirTemp("/var/tmp", "mstage-debian-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", err
	}
	var stderr strings.Builder
	cmd := exec.Command("mmdebstrap", "--mode="+debstrapMode(), "--variant=apt", "--format=tar", "bookworm", "-")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stdout, cmd.Stderr = out, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w\n%s", err, stderr.String())
	}
	return path, nil
})

func debstrapMode() string {
	if os.Geteuid() == 0 {
		return "root"
	}
	return "unshare"
}

// newDebianStore returns a store with the image debian. The test is skipped
// where there is no mmdebstrap, or nothing that it could read packages from.
func newDebianStore(t testing.TB) *testStore {
	t.Helper()
	if reason := userNamespaces(); reason != "" {
		t.Skip(reason)
	}
	if _, err := exec.LookPath("mmdebstrap"); err != nil {
		t.Skipf("no mmdebstrap: %v", err)
	}
	base, err := debianTar()
	if err != nil {
		t.Skipf("no Debian base can be made: %v", err)
	}
	s := newTestStore(t)
	s.mustRun("import", base, "debian")
	return s
}

// ownersDockerfile installs packages that make a system user and group, bring
// setuid and setgid programs and file capabilities, and adds hard links.
const ownersDockerfile = `FROM debian
RUN apt-get update -q && apt-get install -y -q --no-install-recommends openssh-client dnsmasq-base iputils-ping sudo && rm -rf /var/lib/apt/lists/*
RUN mkdir /o && echo a >/o/one && ln /o/one /o/two && chown 33:8 /o/one && chmod 4755 /o/one && ln /o/one /usr/local/three && \
  mkdir -m 3775 /o/shared && chgrp 50 /o/shared && mkfifo /o/fifo && ln -s nowhere /o/link && chown -h 33:33 /o/link
RUN ping -c 1 -W 5 127.0.0.1 && getent passwd dnsmasq && test "$(getcap /usr/bin/ping)" = "/usr/bin/ping cap_net_raw=ep" && \
  stat -c '%h %u:%g %a' /o/two | grep -x '3 33:8 4755'
`

func TestOwnersModesCapabilitiesAndLinksAreRightInTheExportedTar(t *testing.T) {
	s := newDebianStore(t)
	s.write("ctx/Dockerfile", ownersDockerfile)
	tree := s.builtTree("ctx")
	uid := s.userID(tree)
	for name, want := range map[string]string{
		"/run/dnsmasq":       `^5 0755 ` + uid + `:65534 `,
		"/etc/shadow":        `^0 0640 0:42 `,
		"/usr/bin/ssh-agent": `^0 2755 0:10[0-9] `,
		"/usr/bin/su":        `^0 4755 0:0 `,
		"/usr/bin/sudo":      `^0 4755 0:0 `,
		"/usr/bin/chage":     `^0 2755 0:42 `,
		"/usr/bin/ping":      `^0 0755 0:0 .*SCHILY\.xattr\.security\.capability=`,
		"/tmp":               `^5 1777 0:0 `,
		"/var/mail":          `^5 2775 0:8 `,
		"/var/local":         `^5 2775 0:50 `,
		"/o/one":             `^0 4755 33:8 `,
		"/o/two":             `^1 4755 33:8 .* -> "o/one"`,
		"/usr/local/three":   `^1 4755 33:8 .* -> "o/one"`,
		"/o/shared":          `^5 3775 0:50 `,
		"/o/fifo":            `^6 0644 0:0 `,
		"/o/link":            `^2 0777 33:33 .* -> "nowhere"`,
	} {
		if got := tree[name]; !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%s is %q, want %s", name, got, want)
		}
	}
}

// userID returns the user ID that the package's system user was given.
func (s *testStore) userID(tree fileTree) string {
	s.t.Helper()
	// Owners are numbers in the tree; the user's directory has its number.
	m := regexp.MustCompile(`^5 0755 ([0-9]+):`).FindStringSubmatch(tree["/run/dnsmasq"])
	if m == nil {
		s.t.Fatalf("/run/dnsmasq is %q", tree["/run/dnsmasq"])
	}
	passwd := s.mustRun("build", "-q", "-t", "owners", "ctx") + s.mustRun("run", "owners", "cat", "/etc/passwd")
	if !strings.Contains(passwd, "\ndnsmasq:x:"+m[1]+":") {
		s.t.Fatalf("user %s owns /run/dnsmasq, want dnsmasq of\n%s", m[1], passwd)
	}
	return m[1]
}

func TestOwnersSurviveACopyAndAnExportThatIsImportedAgain(t *testing.T) {
	s := newDebianStore(t)
	s.write("ctx/Dockerfile", ownersDockerfile+"FROM scratch\nCOPY --from=0 / /\n")
	copied := s.builtTree("ctx")
	s.write("ctx/Dockerfile", ownersDockerfile)
	direct := s.builtTree("ctx")
	sameTree(t, copied, direct)
	out := filepath.Join(s.dir, "out.tar")
	s.mustRun("build", "-q", "-o", "type=tar,dest="+out, "ctx")
	s.mustRun("import", out, "again")
	s.write("ctx/Dockerfile", "FROM again\n")
	sameTree(t, s.builtTree("ctx"), direct)
}
