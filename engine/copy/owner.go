package copy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/mstage/mstage/storage/tree"
)

const (
	// maxAccountsBytes bounds /etc/passwd and /etc/group, in bytes. Docker's
	// limit too.
	maxAccountsBytes = 10 << 20
	// maxAccountsLine bounds one line: a group may list very many users.
	maxAccountsLine = 1 << 20
	// maxUserID is the largest id that runtimes accept. Source: OCI
	// implementations take ids as int32.
	maxUserID = 1<<31 - 1
)

// User is who runs a command.
type User struct {
	UID, GID uint32
	// Groups are the supplementary groups, GID first: were it only the effective
	// group, a program with the setgid bit would lose it. Source: CVE-2023-25173.
	Groups []uint32
	// Home is the home directory: that of /etc/passwd, else "/root" for user 0
	// and "/" for others.
	Home string
}

// account is one line of /etc/passwd.
type account struct {
	name, home string
	uid, gid   uint32
}

// group is one line of /etc/group.
type group struct {
	name    string
	gid     uint32
	members []string
}

// LookupOwner returns the owner that a --chown of "user[:group]" names, looked
// up in the files of view. A user's number without a group is the group's too; a
// user's name without a group has the primary group of /etc/passwd; "root" is 0
// in any image. Source: BuildKit, llb.WithUser. Unlike there, an unknown name is
// an error, not 0.
func LookupOwner(view tree.Tree, chown string) (uid, gid uint32, err error) {
	userName, groupName, _ := strings.Cut(chown, ":")
	if userName == "" && groupName == "" {
		return 0, 0, fmt.Errorf("owner %q names no user", chown)
	}
	id, isID, err := parseID(userName)
	switch {
	case err != nil:
		return 0, 0, err
	case isID:
		uid, gid = id, id
	case userName == "": // ":group" leaves the user as root
	default:
		a, err := findAccount(view, userName)
		if err != nil {
			return 0, 0, err
		}
		uid, gid = a.uid, a.gid
	}
	if groupName == "" {
		return uid, gid, nil
	}
	gid, err = lookupGroup(view, groupName)
	return uid, gid, err
}

func findAccount(view tree.Tree, name string) (account, error) {
	accounts, err := readAccounts(view)
	if err != nil {
		return account{}, err
	}
	i := slices.IndexFunc(accounts, func(a account) bool { return a.name == name })
	if i < 0 {
		return account{}, fmt.Errorf("no user %q in the image's /etc/passwd", name)
	}
	return accounts[i], nil
}

func lookupGroup(view tree.Tree, name string) (uint32, error) {
	id, isID, err := parseID(name)
	if err != nil || isID {
		return id, err
	}
	groups, err := readGroups(view)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(groups, func(g group) bool { return g.name == name })
	if i < 0 {
		return 0, fmt.Errorf("no group %q in the image's /etc/group", name)
	}
	return groups[i].gid, nil
}

// parseID returns the number that s is; "root" is 0.
func parseID(s string) (id uint32, ok bool, err error) {
	if s == "root" {
		return 0, true, nil
	}
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n > maxUserID {
		return 0, false, fmt.Errorf("id %s: not between 0 and %d", s, maxUserID)
	}
	return uint32(n), true, nil
}

// LookupUser returns the user that USER's "user[:group]" names; "" is root. A
// number need not be in /etc/passwd; its group is then 0. Supplementary groups
// are the user's own and those of /etc/group, or just the one that is given.
// Source: Dockerfile reference, USER; moby/sys/user.
func LookupUser(view tree.Tree, spec string) (User, error) {
	userName, groupName, _ := strings.Cut(spec, ":")
	if userName == "" {
		userName = "0"
	}
	id, isID, err := parseID(userName)
	if err != nil {
		return User{}, err
	}
	accounts, err := readAccounts(view)
	if err != nil {
		return User{}, err
	}
	i := slices.IndexFunc(accounts, func(a account) bool {
		return (isID && a.uid == id) || (!isID && a.name == userName)
	})
	if i < 0 && !isID {
		return User{}, fmt.Errorf("no user %q in the image's /etc/passwd", userName)
	}
	user, name := User{UID: id}, ""
	if i >= 0 {
		a := accounts[i]
		user, name = User{UID: a.uid, GID: a.gid, Home: a.home}, a.name
	}
	user.Home = homeOf(user)
	err = user.addGroups(view, name, groupName)
	return user, err
}

func homeOf(u User) string {
	switch {
	case strings.HasPrefix(u.Home, "/"):
		return u.Home
	case u.UID == 0:
		return "/root"
	default:
		return "/"
	}
}

// addGroups sets the group when one is given, and the supplementary ones.
func (u *User) addGroups(view tree.Tree, name, groupName string) error {
	if groupName != "" {
		gid, err := lookupGroup(view, groupName)
		u.GID, u.Groups = gid, []uint32{gid}
		return err
	}
	u.Groups = []uint32{u.GID}
	if name == "" {
		return nil
	}
	groups, err := readGroups(view)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if slices.Contains(g.members, name) && !slices.Contains(u.Groups, g.gid) {
			u.Groups = append(u.Groups, g.gid)
		}
	}
	return nil
}

func readAccounts(view tree.Tree) ([]account, error) {
	var accounts []account
	err := readLines(view, "etc/passwd", func(f []string) {
		if len(f) < 4 {
			return
		}
		a := account{name: f[0]}
		var ok [2]bool
		a.uid, ok[0], _ = parseID(f[2])
		a.gid, ok[1], _ = parseID(f[3])
		if len(f) > 5 {
			a.home = f[5]
		}
		if ok[0] && ok[1] {
			accounts = append(accounts, a)
		}
	})
	return accounts, err
}

func readGroups(view tree.Tree) ([]group, error) {
	var groups []group
	err := readLines(view, "etc/group", func(f []string) {
		if len(f) < 3 {
			return
		}
		g := group{name: f[0]}
		gid, ok, _ := parseID(f[2])
		if !ok {
			return
		}
		g.gid = gid
		if len(f) > 3 {
			g.members = strings.Split(f[3], ",")
		}
		groups = append(groups, g)
	})
	return groups, err
}

// readLines calls take with the fields of each line of a file of the view. A
// file that is missing, or no file, has no lines.
func readLines(view tree.Tree, name string, take func(fields []string)) error {
	resolved, exists, err := tree.Resolve(view, name, true)
	if err != nil || !exists {
		return err
	}
	e, err := view.Lstat(resolved)
	if err != nil || !e.IsRegular() {
		return err
	}
	if e.Size > maxAccountsBytes {
		return fmt.Errorf("/%s is over %d bytes", name, maxAccountsBytes)
	}
	f, err := view.Open(resolved)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	scanner := bufio.NewScanner(io.LimitReader(f, maxAccountsBytes))
	scanner.Buffer(nil, maxAccountsLine)
	for scanner.Scan() {
		line := strings.TrimSpace(scanner.Text())
		if line != "" && line[0] != '#' {
			take(strings.Split(line, ":"))
		}
	}
	if err := scanner.Err(); err != nil {
		return fmt.Errorf("/%s: %w", name, err)
	}
	return nil
}
