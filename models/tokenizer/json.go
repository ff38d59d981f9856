package tokenizer

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
)

// object is a JSON object whose members are taken one by one, so that one nobody asked for is noticed. The first
// error stays, and everything after it gives zero values.
type object struct {
	path    string // of the file, for errors
	members map[string]json.RawMessage
	err     *error // shared by all objects of a file
}

func (o *object) fail(format string, args ...any) {
	if *o.err == nil {
		*o.err = fmt.Errorf(format, args...)
	}
}

// UnsupportedError says which part of a tokenizer's file this package does not have. Other errors are of files that are wrong.
type UnsupportedError struct{ Reason string }

func (e *UnsupportedError) Error() string { return e.Reason }

// ErrorKind is the kind in the words of proto/zcerr.
func (e *UnsupportedError) ErrorKind() string { return "unsupported" }

func (o *object) unsupported(format string, args ...any) {
	if *o.err == nil {
		*o.err = &UnsupportedError{fmt.Sprintf(format, args...)}
	}
}

// readObject reads the members of an object. Equal keys are an error, and case counts.
func readObject(path string, raw []byte, err *error) *object {
	o := &object{path, map[string]json.RawMessage{}, err}
	eachMember(o, raw, func(key string, d *json.Decoder) error {
		var v json.RawMessage
		if err := d.Decode(&v); err != nil {
			return err
		}
		if _, dup := o.members[key]; dup {
			return fmt.Errorf("duplicate key %q", key)
		}
		o.members[key] = v
		return nil
	})
	return o
}

// eachMember calls member for each key of the object raw; member decodes the value.
func eachMember(o *object, raw []byte, member func(key string, d *json.Decoder) error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		o.fail("%s: want an object", o.path)
		return
	}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			o.fail("%s: %w", o.path, err)
			return
		}
		key, ok := t.(string)
		if !ok {
			o.fail("%s: want a key", o.path)
			return
		}
		if err := member(key, d); err != nil {
			o.fail("%s: %w", o.path, err)
			return
		}
	}
	if _, err := d.Token(); err != nil {
		o.fail("%s: %w", o.path, err)
	}
	if rest := raw[d.InputOffset():]; len(bytes.TrimLeft(rest, " \t\r\n")) > 0 {
		o.fail("%s: something follows the object", o.path)
	}
}

// take removes a member. A missing one and null are the same.
func (o *object) take(key string) (json.RawMessage, bool) {
	v, ok := o.members[key]
	delete(o.members, key)
	if !ok || *o.err != nil || string(v) == "null" {
		return nil, false
	}
	return v, true
}

// need is take for a member that must be there.
func (o *object) need(key string) (json.RawMessage, bool) {
	v, ok := o.take(key)
	if !ok {
		o.fail("%s: %q is missing", o.path, key)
	}
	return v, ok
}

// value decodes a required member.
func value[T any](o *object, key string) (v T) {
	if raw, ok := o.need(key); ok {
		decodeInto(o, key, raw, &v)
	}
	return v
}

// valueOr decodes a member that may be missing.
func valueOr[T any](o *object, key string, def T) T {
	raw, ok := o.take(key)
	if !ok {
		return def
	}
	var v T
	decodeInto(o, key, raw, &v)
	return v
}

func decodeInto(o *object, key string, raw json.RawMessage, v any) {
	if err := json.Unmarshal(raw, v); err != nil {
		o.fail("%s.%s: found %s, want %s", o.path, key, found(raw), wanted(v))
	}
}

// found says what stands there, for errors.
func found(raw json.RawMessage) string {
	const most = 40
	short := string(raw)
	if len(short) > most {
		short = strings.ToValidUTF8(short[:most], "") + "..."
	}
	switch {
	case len(raw) == 0:
		return "nothing"
	case raw[0] == '"':
		return "the string " + short
	case raw[0] == '{':
		return "an object"
	case raw[0] == '[':
		return "a list"
	case raw[0] == 't' || raw[0] == 'f' || raw[0] == 'n':
		return short
	}
	return "the number " + short
}

// wanted says what would be accepted.
func wanted(v any) string {
	switch v.(type) {
	case *bool:
		return "true or false"
	case *string:
		return "a string"
	case *int32, **int32:
		return "a whole number of at most 31 bits"
	case *int64:
		return "a whole number"
	case *float64:
		return "a number"
	case *[]int32:
		return "a list of whole numbers of at most 31 bits"
	case *[]string:
		return "a list of strings"
	case *[]json.RawMessage:
		return "a list"
	}
	return "something else"
}

// id decodes a token id.
func (o *object) id(key string) int32 {
	n := value[int64](o, key)
	if n < 0 || n > math.MaxInt32 {
		o.fail("%s.%s: %d is no token id", o.path, key, n)
		return 0
	}
	return int32(n)
}

// count decodes a number from 0 to limit.
func (o *object) count(key string, def, limit int64) int {
	n := valueOr(o, key, def)
	if n < 0 || n > limit {
		o.fail("%s.%s: %d is not between 0 and %d", o.path, key, n, limit)
		return 0
	}
	return int(n)
}

// object takes a member that is an object; nil if it is missing.
func (o *object) object(key string) *object {
	raw, ok := o.take(key)
	if !ok {
		return nil
	}
	return readObject(o.path+"."+key, raw, o.err)
}

// list takes a member that is an array of objects.
func (o *object) list(key string) []*object {
	var out []*object
	for i, raw := range valueOr[[]json.RawMessage](o, key, nil) {
		out = append(out, readObject(fmt.Sprintf("%s.%s[%d]", o.path, key, i), raw, o.err))
	}
	return out
}

// end refuses what nobody took.
func (o *object) end() {
	for _, key := range sortedKeys(o.members) {
		o.unsupported("%s: unsupported field %q", o.path, key)
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
