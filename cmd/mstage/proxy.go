package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// dockerProxies is the part of docker's config.json that says which proxies
// builds use. Source: docker CLI reference, "Configure the Docker client to use
// a proxy".
type dockerProxies struct {
	Proxies map[string]struct {
		HTTP  string `json:"httpProxy"`
		HTTPS string `json:"httpsProxy"`
		FTP   string `json:"ftpProxy"`
		No    string `json:"noProxy"`
		All   string `json:"allProxy"`
	} `json:"proxies"`
}

// proxies returns the proxy variables for RUNs: docker's config first, the
// environment over it, as the caller wrote them.
func (c *cli) proxies() (map[string]string, error) {
	args, err := c.configuredProxies()
	if err != nil {
		return nil, err
	}
	for _, name := range proxyVariables {
		for _, n := range []string{name, strings.ToLower(name)} {
			if v := c.getenv(n); v != "" {
				args[n] = v
			}
		}
	}
	return args, nil
}

// dockerConfig is where docker keeps its config.json, "" without a home: the
// working directory is none.
func (c *cli) dockerConfig() string {
	if dir := c.getenv("DOCKER_CONFIG"); dir != "" {
		return filepath.Join(dir, "config.json")
	}
	home := c.getenv("HOME")
	if home == "" {
		return ""
	}
	return filepath.Join(home, ".docker", "config.json")
}

// configuredProxies reads docker's config.json, when there is one.
func (c *cli) configuredProxies() (map[string]string, error) {
	args := map[string]string{}
	name := c.dockerConfig()
	if name == "" {
		return args, nil
	}
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.ENOTDIR) {
		return args, nil // ENOTDIR: service users have /dev/null as their home
	}
	if err != nil {
		return nil, err
	}
	var config dockerProxies
	if err := json.Unmarshal(b, &config); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	p := config.Proxies["default"]
	for key, value := range map[string]string{
		"HTTP_PROXY": p.HTTP, "HTTPS_PROXY": p.HTTPS, "FTP_PROXY": p.FTP, "NO_PROXY": p.No, "ALL_PROXY": p.All,
	} {
		if value != "" {
			args[key] = value
		}
	}
	return args, nil
}
