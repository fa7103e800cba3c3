package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/mstage/mstage/pkg/registry"
	registrysource "github.com/mstage/mstage/plugins/registry"
)

// defaultRegistry is where docker logs in when no registry is named.
const defaultRegistry = "docker.io"

// loginFlags are the flags of `mstage login`.
type loginFlags struct {
	registryFlags

	user, password string
	passwordStdin  bool
	getLogin       bool
}

func newLoginCommand(c *cli) *cobra.Command {
	var f loginFlags
	cmd := &cobra.Command{
		Use:   "login [flags] [REGISTRY]",
		Short: "Log in to a registry",
		Long: `Ask a registry (default docker.io) whether it takes a user and password, and keep
them for pull, push and build: in --authfile, a credential helper that the
configuration names, containers' auth.json, or docker's config.json.`,
		Example: `  mstage login registry.example.com
  echo "$TOKEN" | mstage login -u ci --password-stdin registry.example.com`,
		Args: arguments(cobra.MaximumNArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.login(cmd.Context(), &f, args)
		},
	}
	f.register(cmd)
	f.registerCA(cmd)
	fs := cmd.Flags()
	fs.StringVarP(&f.user, "username", "u", "", "user")
	fs.StringVarP(&f.password, "password", "p", "", "password; others on this host can see it: prefer --password-stdin")
	fs.BoolVar(&f.passwordStdin, "password-stdin", false, "read the password from standard input")
	fs.BoolVar(&f.getLogin, "get-login", false, "print the user who is logged in, and do nothing")
	return cmd
}

func newLogoutCommand(c *cli) *cobra.Command {
	var f registryFlags
	var all bool
	cmd := &cobra.Command{
		Use:     "logout [flags] [REGISTRY]",
		Short:   "Forget the credentials for a registry",
		Long:    `Forget the credentials for a registry (default docker.io), or for all.`,
		Example: `  mstage logout registry.example.com`,
		Args:    arguments(cobra.MaximumNArgs(1)),
		RunE: func(_ *cobra.Command, args []string) error {
			return c.logout(&f, all, args)
		},
	}
	f.register(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "for all registries")
	return cmd
}

// registryHost is the registry that the arguments name. Some write it as a URL.
func registryHost(args []string) string {
	if len(args) == 0 {
		return defaultRegistry
	}
	host := strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://")
	host, _, _ = strings.Cut(host, "/")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		return defaultRegistry
	}
	return host
}

func (c *cli) login(ctx context.Context, f *loginFlags, args []string) error {
	o, err := c.registryOptions(&f.registryFlags)
	if err != nil {
		return err
	}
	host := registryHost(args)
	client := registry.New(o)
	if f.getLogin {
		user, err := client.LoggedIn(host)
		if err == nil && user == "" {
			err = usagef("not logged in to %s", host)
		}
		if err != nil {
			return registrysource.Refusal(err)
		}
		_, err = fmt.Fprintln(c.stdout, user)
		return err
	}
	creds, err := c.readCredentials(f)
	if err != nil {
		return err
	}
	kept, err := client.Login(ctx, host, creds)
	if err != nil {
		return registrysource.Refusal(err)
	}
	fmt.Fprintln(c.stderr, "credentials are kept in "+kept)
	_, err = fmt.Fprintln(c.stdout, "Login Succeeded!")
	return err
}

// readCredentials takes what the flags say and asks for the rest.
func (c *cli) readCredentials(f *loginFlags) (registry.Credentials, error) {
	creds := registry.Credentials{User: f.user, Password: f.password}
	if f.passwordStdin {
		if creds.User == "" || creds.Password != "" {
			return creds, usagef("--password-stdin needs --username, and no --password")
		}
		b, err := io.ReadAll(io.LimitReader(c.stdin, maxSecretBytes))
		creds.Password = strings.TrimRight(string(b), "\r\n")
		return creds, err
	}
	if creds.User != "" && creds.Password != "" {
		return creds, nil
	}
	if !isTerminal(c.stdin) {
		return creds, &usageError{message: "no user and password, and no terminal to ask for them", hint: "-u USER --password-stdin reads the password from standard input"}
	}
	var err error
	if creds.User == "" {
		fmt.Fprint(c.stderr, "Username: ")
		if creds.User, err = bufio.NewReader(c.stdin).ReadString('\n'); err != nil {
			return creds, err
		}
		creds.User = strings.TrimSpace(creds.User)
	}
	if creds.Password == "" {
		fmt.Fprint(c.stderr, "Password: ")
		password, err := term.ReadPassword(int(c.stdin.(*os.File).Fd())) // isTerminal says that it is a file
		fmt.Fprintln(c.stderr)
		if err != nil {
			return creds, err
		}
		creds.Password = string(password)
	}
	return creds, nil
}

func (c *cli) logout(f *registryFlags, all bool, args []string) error {
	o, err := c.registryOptions(f)
	if err != nil {
		return err
	}
	client := registry.New(o)
	if all {
		if len(args) > 0 {
			return usagef("logout: --all and a registry exclude each other")
		}
		if err := client.LogoutAll(); err != nil {
			return registrysource.Refusal(err)
		}
		_, err = fmt.Fprintln(c.stdout, "Removed login credentials for all registries")
		return err
	}
	host := registryHost(args)
	if err := client.Logout(host); err != nil {
		return registrysource.Refusal(err)
	}
	_, err = fmt.Fprintln(c.stdout, "Removed login credentials for "+host)
	return err
}
