// Package procmem reads what the kernel says of a process's memory.
package procmem

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Usage is a process's memory in bytes. PSS counts a page that n processes have mapped as 1/n of it.
type Usage struct {
	RSS     int `json:"rss_bytes"`
	PSS     int `json:"pss_bytes"`
	Private int `json:"private_bytes"` // pages that nobody else has mapped
}

// Of reads /proc/PID/smaps_rollup.
func Of(pid int) (Usage, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return Usage{}, err
	}
	var u Usage
	for line := range strings.Lines(string(b)) {
		switch key, n := field(line); key {
		case "Rss":
			u.RSS = n
		case "Pss":
			u.PSS = n
		case "Private_Clean", "Private_Dirty":
			u.Private += n
		}
	}
	return u, nil
}

// field splits "Pss:   12 kB" into its key and bytes.
func field(line string) (string, int) {
	key, rest, ok := strings.Cut(line, ":")
	if !ok {
		return "", 0
	}
	n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
	if err != nil {
		return "", 0
	}
	return key, n << 10
}

// Mapping is one mapping of a file.
type Mapping struct {
	Inode     uint64 `json:"inode"`
	Perms     string `json:"perms"` // r--s: readable, shared with other processes
	Size      int    `json:"size_bytes"`
	RSS       int    `json:"rss_bytes"`
	PSS       int    `json:"pss_bytes"`
	Anonymous int    `json:"anonymous_bytes"` // pages that are copies of this process alone
}

// Mappings lists the mappings that a process has of the files with these inodes, from /proc/PID/smaps.
func Mappings(pid int, inodes ...uint64) ([]Mapping, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, err
	}
	wanted := map[uint64]bool{}
	for _, i := range inodes {
		wanted[i] = true
	}
	var out []Mapping
	var at *Mapping
	sc := bufio.NewScanner(bytes.NewReader(b))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if f := strings.Fields(line); len(f) >= 5 && strings.Contains(f[0], "-") && !strings.HasSuffix(f[0], ":") {
			at = nil
			if inode, err := strconv.ParseUint(f[4], 10, 64); err == nil && wanted[inode] {
				out = append(out, Mapping{Inode: inode, Perms: f[1]})
				at = &out[len(out)-1]
			}
			continue
		}
		if at == nil {
			continue
		}
		switch key, n := field(line); key {
		case "Size":
			at.Size = n
		case "Rss":
			at.RSS = n
		case "Pss":
			at.PSS = n
		case "Anonymous":
			at.Anonymous = n
		}
	}
	return out, sc.Err()
}
