package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// authority signs the certificates of test registries.
type authority struct {
	t    testing.TB
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	// file is the certificate as PEM.
	file string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a test's authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, cert: cert, file: filepath.Join(t.TempDir(), "ca.crt")}
	if err := os.WriteFile(a.file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644); err != nil {
		t.Fatal(err)
	}
	return a
}

// sign returns a certificate for an address that ends at a time.
func (a *authority) sign(ip string, end time.Time) *tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: end.Add(-2 * time.Hour), NotAfter: end, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// inDir makes a directory with the authority's certificate.
func (a *authority) inDir(dir string) string {
	a.t.Helper()
	if err := errors.Join(os.MkdirAll(dir, 0o755), copyFile(a.file, filepath.Join(dir, "ca.crt"))); err != nil {
		a.t.Fatal(err)
	}
	return dir
}

func TestARegistryNeedsACertificateThatIsTrusted(t *testing.T) {
	ca := newAuthority(t)
	reg := newRegistry(t, registryOptions{certificate: ca.sign("127.0.0.1", time.Now().Add(time.Hour))})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	name := reg.host + "/base:1"
	for what, prepare := range map[string]func(s *testStore) (flag string){
		"--cert-dir":                    func(*testStore) string { return "--cert-dir=" + ca.inDir(t.TempDir()) },
		"--ca-bundle":                   func(*testStore) string { return "--ca-bundle=" + ca.file },
		"--tls-verify=false":            func(*testStore) string { return "--tls-verify=false" },
		"certs.d of the home directory": func(s *testStore) string { ca.inDir(s.home + "/.config/containers/certs.d/" + reg.host); return "-q" },
	} {
		t.Run(what, func(t *testing.T) {
			s := registryStore(t)
			s.dockerfile("FROM " + name)
			wants := []string{reg.host, "unknown authority", "hint: ", "certs.d", "--cert-dir", "--ca-bundle"}
			s.fails(6, wants, "pull", name)
			s.fails(6, append(wants, "Dockerfile:1:6"), "build", "ctx")
			flag := prepare(s)
			s.mustRun("pull", flag, name)
			s.mustRun("build", "--pull", flag, "ctx")
			s.mustRun("push", flag, name, reg.host+"/copy:1")
			s.sound()
		})
	}
}

func TestDistributionSpeaksTLSItself(t *testing.T) {
	ca := newAuthority(t)
	cert := ca.sign("127.0.0.1", time.Now().Add(time.Hour))
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]}, "key": {Type: "PRIVATE KEY", Bytes: key}}
	for name, block := range files {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := startDistribution(t, distributionConfig(t, t.TempDir(), false, "  tls: {certificate: "+dir+"/cert, key: "+dir+"/key}"))
	s := newBusyboxStore(t)
	s.isolate()
	s.fails(6, []string{host, "unknown authority", "hint: "}, "push", "busybox", host+"/x")
	s.mustRun("push", "-q", "--cert-dir", ca.inDir(t.TempDir()), "busybox", host+"/x")
	s.mustRun("pull", "-q", "--ca-bundle", ca.file, host+"/x")
}

func TestACertificateThatIsWrongIsToldFromOneThatIsUnknown(t *testing.T) {
	ca := newAuthority(t)
	for what, c := range map[string]struct {
		certificate *tls.Certificate
		want        []string
	}{
		"expired":      {ca.sign("127.0.0.1", time.Now().Add(-time.Minute)), []string{"expired", "hint: ", "clock"}},
		"another name": {ca.sign("192.0.2.1", time.Now().Add(time.Hour)), []string{"another name", "hint: "}},
	} {
		t.Run(what, func(t *testing.T) {
			reg := newRegistry(t, registryOptions{certificate: c.certificate})
			reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
			s := registryStore(t)
			s.fails(6, append(c.want, reg.host), "pull", "--ca-bundle", ca.file, reg.host+"/base:1")
			s.mustRun("pull", "-q", "--tls-verify=false", reg.host+"/base:1")
		})
	}
}

func TestARegistryThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := l.Addr().String()
	l.Close()
	s := registryStore(t)
	s.dockerfile("FROM registry.invalid/base")
	s.fails(6, []string{"Dockerfile:1:6", "registry.invalid", "hint: "}, "build", "ctx")
	s.fails(6, []string{"registry.invalid", "hint: "}, "pull", "registry.invalid/base")
	s.fails(6, []string{closed, "refuses connections", "hint: "}, "pull", closed+"/base")
	s.fails(6, []string{closed, "refuses connections", "hint: "}, "login", "-u", "x", "-p", "y", closed)
}

func TestPasswords(t *testing.T) {
	reg := newRegistry(t, registryOptions{passwords: true})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	name := reg.host + "/base:1"
	basic := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
	auths := `{"auths":{"` + reg.host + `":{"auth":"` + basic + `"}}}`
	for what, c := range map[string]func(s *testStore) (flags []string){
		"--creds":         func(*testStore) []string { return []string{"--creds", registryUser + ":" + registryPassword} },
		"--authfile":      func(s *testStore) []string { return []string{"--authfile", s.write("auth.json", auths)} },
		"docker's config": func(s *testStore) []string { s.writeHome(".docker/config.json", auths); return nil },
		"containers' auth.json": func(s *testStore) []string {
			s.writeHome(".config/containers/auth.json", auths)
			return nil
		},
		"REGISTRY_AUTH_FILE": func(s *testStore) []string {
			s.env = append(s.env, "REGISTRY_AUTH_FILE="+s.write("auth.json", auths))
			return nil
		},
		"DOCKER_CONFIG": func(s *testStore) []string {
			s.env = append(s.env, "DOCKER_CONFIG="+filepath.Dir(s.write("docker/config.json", auths)))
			return nil
		},
		"a credential helper": func(s *testStore) []string {
			s.credentialHelper()
			s.writeHome(".docker/config.json", `{"credHelpers":{"`+reg.host+`":"test"}}`)
			return nil
		},
		"docker's credential store": func(s *testStore) []string {
			s.credentialHelper()
			s.writeHome(".docker/config.json", `{"auths":{"`+reg.host+`":{}},"credsStore":"test"}`)
			return nil
		},
		"login": func(s *testStore) []string { s.login(reg.host, registryPassword, 0); return nil },
	} {
		t.Run(what, func(t *testing.T) {
			s := registryStore(t)
			s.dockerfile("FROM " + name)
			s.fails(7, []string{reg.host, "401", "hint: mstage login " + reg.host}, "pull", name)
			s.fails(7, []string{"Dockerfile:1:6", reg.host, "401", "hint: mstage login"}, "build", "ctx")
			flags := c(s)
			s.mustRun(append([]string{"pull", "-q", name}, flags...)...)
			s.mustRun(append([]string{"build", "--pull", "ctx"}, flags...)...)
			s.mustRun(append([]string{"push", "-q", name, reg.host + "/copy:1"}, flags...)...)
		})
	}
}

// writeHome writes a file below the home directory.
func (s *testStore) writeHome(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.home, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o600)); err != nil {
		s.t.Fatal(err)
	}
}

// credentialHelper puts docker-credential-test into PATH; it knows the user.
func (s *testStore) credentialHelper() {
	s.t.Helper()
	path := s.write("bin/docker-credential-test", `#!/bin/sh
[ "$1" = get ] || exit 1
echo '{"ServerURL":"x","Username":"`+registryUser+`","Secret":"`+registryPassword+`"}'
`)
	if err := os.Chmod(path, 0o755); err != nil {
		s.t.Fatal(err)
	}
	s.env = append(s.env, "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
}

// login logs in with a password from standard input.
func (s *testStore) login(host, password string, want int) string {
	s.t.Helper()
	var stderr strings.Builder
	cmd := s.command("login", "-u", registryUser, "--password-stdin", host)
	cmd.Stdin, cmd.Stderr = strings.NewReader(password+"\n"), &stderr
	_ = cmd.Run() // its exit code is looked at
	if got := cmd.ProcessState.ExitCode(); got != want {
		s.t.Errorf("login: exit code %d, want %d\n%s", got, want, stderr.String())
	}
	return stderr.String()
}

func TestLoginAndLogout(t *testing.T) {
	reg := newRegistry(t, registryOptions{passwords: true})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	s := registryStore(t)
	if text := s.login(reg.host, "wrong", 7); !strings.Contains(text, reg.host) || strings.Contains(text, "wrong") {
		t.Errorf("a wrong password is answered by %q, want the host's name and not the password", text)
	}
	s.fails(2, []string{"not logged in"}, "login", "--get-login", reg.host)
	s.fails(2, []string{"not logged in"}, "logout", reg.host)
	s.login(reg.host, registryPassword, 0)
	if got := s.mustRun("login", "--get-login", reg.host); got != registryUser+"\n" {
		t.Errorf("logged in as %q, want %s", got, registryUser)
	}
	if st, err := os.Stat(filepath.Join(s.home, ".docker", "config.json")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the credentials' file has mode %v, %v, want 600", st, err)
	}
	s.mustRun("pull", "-q", reg.host+"/base:1")
	s.mustRun("logout", reg.host)
	s.fails(7, []string{"hint: mstage login"}, "pull", reg.host+"/base:1")
	s.fails(7, []string{reg.host, "401"}, "pull", "--creds", "x:y", reg.host+"/base:1")
	s.fails(2, []string{"--password-stdin"}, "login", reg.host)
	t.Run("into --authfile", func(t *testing.T) {
		file := filepath.Join(s.dir, "own.json")
		s.mustRun("login", "--authfile", file, "-u", registryUser, "-p", registryPassword, reg.host)
		s.mustRun("pull", "-q", "--authfile", file, reg.host+"/base:1")
		s.mustRun("logout", "--authfile", file, "--all")
		s.fails(7, nil, "pull", "--authfile", file, reg.host+"/base:1")
	})
}

func TestABrokenCredentialFileIsNamed(t *testing.T) {
	reg := newRegistry(t, registryOptions{})
	s := registryStore(t)
	s.fails(7, []string{"broken.json", "hint: "}, "pull", "--authfile", s.write("broken.json", "{"), reg.host+"/base:1")
	s.writeHome(".docker/config.json", `{"credHelpers":{"`+reg.host+`":"there-is-none"}}`)
	s.fails(7, []string{"docker-credential-there-is-none", "hint: "}, "pull", reg.host+"/base:1")
}

func TestCredentialsAreForTheRegistryAlone(t *testing.T) {
	mirror, reg := newRegistry(t, registryOptions{}), newRegistry(t, registryOptions{passwords: true})
	reg.putImage("base", "1", imageSpec{files: []string{"a=first"}})
	leaked := make(chan string, 10)
	mirror.intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if a := r.Header.Get("Authorization"); a != "" {
			leaked <- a
		}
		return false
	})
	s := registryStore(t)
	s.registriesConf("[[registry]]", `location="`+reg.host+`"`, "[[registry.mirror]]", `location="`+mirror.host+`"`)
	s.mustRun("pull", "-q", "--creds", registryUser+":"+registryPassword, reg.host+"/base:1")
	if mirror.askedFor("manifests") == 0 {
		t.Error("the mirror was not asked")
	}
	select {
	case a := <-leaked:
		t.Errorf("the mirror got %q", a)
	default:
	}
}

// registriesConf writes the registries.conf that the store's commands read.
func (s *testStore) registriesConf(lines ...string) {
	s.t.Helper()
	s.write("registries.conf", strings.Join(lines, "\n")+"\n")
}

func TestAPushThatFailsSaysWhy(t *testing.T) {
	reg := newRegistry(t, registryOptions{passwords: true})
	s := newBusyboxStore(t)
	s.isolate()
	s.dockerfile("FROM busybox", "LABEL a=b")
	for _, args := range [][]string{{"push", "busybox", reg.host + "/x:1"}, {"build", "-t", reg.host + "/x:1", "--push", "ctx"}} {
		s.fails(7, []string{reg.host + "/x:1", "401", "hint: mstage login " + reg.host}, args...)
	}
	s.fails(2, []string{"digest"}, "push", "busybox", reg.host+"/x@sha256:"+strings.Repeat("0", 64))
	s.fails(2, []string{"no name"}, "build", "--push", "ctx")
	s.fails(4, []string{"no such image"}, "push", "nothing", reg.host+"/x:1")
	s.login(reg.host, registryPassword, 0)
	s.mustRun("push", "-q", "busybox", reg.host+"/x:1")
	reg.intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"read only"}]}`, http.StatusForbidden)
		}
		return r.Method == http.MethodPut
	})
	s.fails(7, []string{reg.host, "403", "read only"}, "push", "busybox", reg.host+"/other:1")
	reg.front.Close()
	s.fails(6, []string{reg.host, "refuses connections", "hint: "}, "push", "busybox", reg.host+"/x:2")
	s.sound()
}
