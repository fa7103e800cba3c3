package runc

import _ "embed"

// seccompProfile is docker's default profile as struct sock_filter.
//
//go:embed profile_arm64.bpf
var seccompProfile []byte
