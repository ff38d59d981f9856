package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/proto/zcerr"
)

func TestEveryCommandExplainsItself(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		switch {
		case c.Name() == "help" || c.Name() == "completion": // cobra's own
			return
		case !c.Hidden && (c.Short == "" || c.Long == ""):
			t.Errorf("%s has no help", c.CommandPath())
		case !c.Hidden && !strings.Contains(c.Example, "zcctl"):
			t.Errorf("%s has no example", c.CommandPath())
		case !c.Hidden && c.HasParent() && c.GroupID == "":
			t.Errorf("%s is in no group of the help", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(&app{}))
}

func TestUsageErrorsInJSON(t *testing.T) {
	for _, args := range [][]string{{"ls", "-o", "json", "--bad"}, {"ls", "--bad", "-o", "json"}, {"ls", "--bad", "-ojson"}, {"ls", "--bad", "--output=json"}} {
		var out, talk bytes.Buffer
		code := run(context.Background(), args, &out, &talk)
		var got errorJSON
		if err := json.Unmarshal(talk.Bytes(), &got); err != nil || code != 2 || got.Error.Exit != 2 || got.Error.Hint != "zcctl ls --help" {
			t.Errorf("%v: exit %d, %v, said %q", args, code, err, talk.String())
		}
	}
}

func TestInterruptedEndsWith130(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	socket := filepath.Join(t.TempDir(), "s")
	var out, talk bytes.Buffer
	if code := run(ctx, []string{"ls", "--socket", socket}, &out, &talk); code != 130 || talk.String() != "zcctl: interrupted\n" {
		t.Errorf("exit %d, said %q", code, talk.String())
	}
}

func TestReport(t *testing.T) {
	for _, tt := range []struct {
		name, output string
		err          error
		code         int
		want         string
	}{
		{"plain", "table", errors.New("it broke"), 1, "zcctl: it broke\n"},
		{"hint", "table", zcerr.New(zcerr.NotFound, "no x").WithHint("put it"), 3, "zcctl: no x\n  put it\n"},
		{"control bytes", "table", errors.New("a\x1b[31mb\nc"), 1, "zcctl: a?[31mb c\n"},
		{"slow", "table", context.DeadlineExceeded, 8, "zcctl: context deadline exceeded\n  a larger --timeout waits longer; zcctl doctor looks at the daemon\n"},
		{"json", "json", zcerr.New(zcerr.Denied, "no <entry>"), 9, "{\n  \"schema\": 1,\n  \"error\": {\n    \"kind\": \"denied\",\n    \"message\": \"no <entry>\",\n    \"hint\": \"\",\n    \"exit\": 9\n  }\n}\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var talk bytes.Buffer
			a := &app{output: tt.output, stderr: &talk}
			if code := a.report(tt.err); code != tt.code || talk.String() != tt.want {
				t.Errorf("exit %d, said %q, want %d, %q", code, talk.String(), tt.code, tt.want)
			}
		})
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 850 * time.Millisecond: "850ms", 119 * time.Second: "119s", 2 * time.Minute: "2m",
		2 * time.Hour: "2h", 47 * time.Hour: "47h", 48 * time.Hour: "2d",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %s, want %s", d, got, want)
		}
	}
	if age(0) != "-" || age(-62135596800000) != "-" {
		t.Error("a moment that is not known has an age")
	}
}

func TestCut(t *testing.T) {
	for _, tt := range []struct {
		in   string
		n    int
		want string
	}{{"short", 5, "short"}, {"longer", 5, "lo..."}, {"äöüßé", 5, "äöüßé"}, {"äöüßéx", 5, "äö..."}} {
		if got := cut(tt.in, tt.n); got != tt.want {
			t.Errorf("cut(%q, %d) = %q, want %q", tt.in, tt.n, got, tt.want)
		}
	}
}

func TestProgress(t *testing.T) {
	t.Run("lines", func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{w: &b, every: time.Hour}
		p.update("hash", 10, 100)
		p.update("hash", 100, 100)
		p.update("hash", 60, 100) // overtaken
		p.update("send", 0, 0)
		p.close()
		lines := strings.Split(strings.TrimSpace(b.String()), "\n")
		if len(lines) != 2 || !strings.HasPrefix(lines[0], "hash 100 B of 100 B  100 %  ") || !strings.HasPrefix(lines[1], "send 0 B of 0 B  100 %  0 B/s") {
			t.Errorf("got %q", b.String())
		}
	})
	t.Run("terminal", func(t *testing.T) {
		var b bytes.Buffer
		p := &progress{w: &b, line: true}
		p.update("hash", 50, 100)
		p.close()
		if got := b.String(); strings.Contains(got, "\n") || !strings.HasPrefix(got, "\rhash 50 B of 100 B  50 %  ") || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("got %q", got)
		}
	})
	t.Run("modes", func(t *testing.T) {
		for mode, want := range map[string]bool{"auto": false, "none": false, "plain": true} { // a buffer is no terminal
			if p, err := newProgress(mode, &bytes.Buffer{}); err != nil || (p != nil) != want {
				t.Errorf("%s: %v, %v", mode, p, err)
			}
		}
		if _, err := newProgress("json", &bytes.Buffer{}); !errors.Is(err, zcerr.Invalid) {
			t.Errorf("got %v", err)
		}
		var none *progress
		none.close()
	})
}

func TestReadValue(t *testing.T) {
	for _, tt := range []struct {
		name, media string
		in          []byte
		want        string // in JSON, behind the digest
	}{
		{"json", "application/json", []byte(`{"a":1}`), `"json":{"a":1}}`},
		{"json that is none", "application/json", []byte(`{`), `"text":"{"}`},
		{"text", "text/plain", []byte("hi"), `"text":"hi"}`},
		{"bytes", "application/octet-stream", []byte{0xff, 0}, `"base64":"/wA="}`},
		{"large", "text/plain", bytes.Repeat([]byte("x"), showValue+1), ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := readValue(tt.media, tt.in)
			b, err := json.Marshal(v)
			if err != nil || v.SizeBytes != len(tt.in) || v.MediaType != tt.media || !strings.HasSuffix(string(b), tt.want) {
				t.Errorf("got %s, %v, want ...%s", b, err, tt.want)
			}
		})
	}
}

func TestCgroupLimit(t *testing.T) {
	for _, tt := range []struct {
		name, self  string
		files       map[string]string
		limit, used uint64
		where       string
	}{
		{"version 2, the parent's limit is smaller", "0::/a/b\n", map[string]string{
			"a/memory.max": "1000\n", "a/memory.current": "10\n", "a/b/memory.max": "2000\n", "a/b/memory.current": "5\n"}, 1000, 10, "a/memory.max"},
		{"version 2, none", "0::/a\n", map[string]string{"a/memory.max": "max\n"}, 1 << 62, 0, ""},
		{"version 2 in a container", "0::/\n", map[string]string{"memory.max": "5\n", "memory.current": "4\n"}, 5, 4, "memory.max"},
		{"version 1", "5:cpu:/x\n4:memory:/docker/c\n", map[string]string{
			"memory/docker/c/memory.limit_in_bytes": "300\n", "memory/docker/c/memory.usage_in_bytes": "7\n",
			"memory/memory.limit_in_bytes": "9223372036854771712\n"}, 300, 7, "memory/docker/c/memory.limit_in_bytes"},
		{"nonsense", "hello\n", nil, 1 << 62, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			self := filepath.Join(t.TempDir(), "cgroup")
			write(t, self, tt.self)
			for name, content := range tt.files {
				write(t, filepath.Join(root, name), content)
			}
			limit, used, where := cgroupLimit(self, root)
			want := tt.where
			if want != "" {
				want = filepath.Join(root, want)
			}
			if limit != tt.limit || used != tt.used || where != want {
				t.Errorf("got %d, %d, %q, want %d, %d, %q", limit, used, where, tt.limit, tt.used, want)
			}
		})
	}
	if _, _, where := cgroupLimit("/nowhere", "/nowhere"); where != "" {
		t.Errorf("a limit of nothing: %s", where)
	}
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
