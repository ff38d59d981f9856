package hf

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// openRegular opens a file for reading, and nothing else: opening a named pipe would wait for a writer, and opening a device
// may do something. The error is an os.ErrNotExist where nothing has the name, else it has a kind.
func openRegular(path string) (*os.File, fs.FileInfo, error) {
	st, err := os.Stat(path)
	if err == nil {
		err = regular(path, st)
	}
	if err != nil {
		return nil, nil, cannotRead(path, err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // it may have become a pipe since
	if err != nil {
		return nil, nil, cannotRead(path, err)
	}
	if st, err = f.Stat(); err == nil {
		err = regular(path, st)
	}
	if err != nil {
		_ = f.Close()
		return nil, nil, cannotRead(path, err)
	}
	return f, st, nil
}

func regular(path string, st fs.FileInfo) error {
	what := ""
	switch m := st.Mode(); {
	case m.IsRegular():
		return nil
	case m.IsDir():
		what = "a directory"
	case m&fs.ModeNamedPipe != 0:
		what = "a named pipe"
	case m&fs.ModeSocket != 0:
		what = "a socket"
	case m&fs.ModeDevice != 0:
		what = "a device"
	default:
		what = m.String()
	}
	return zcerr.New(zcerr.Invalid, "%s is no regular file (%s)", path, what)
}

// cannotRead gives an error of the file system its kind. That nothing has the name stays as it is, because most files may be
// left out.
func cannotRead(path string, err error) error {
	var e *zcerr.Error
	switch {
	case errors.As(err, &e):
		return err
	case errors.Is(err, fs.ErrNotExist):
		to, linkErr := os.Readlink(path)
		if linkErr != nil {
			return err
		}
		return zcerr.New(zcerr.Invalid, "%s is a symbolic link to %s, which is not there", path, to).WithHint("download the file again")
	case errors.Is(err, fs.ErrPermission):
		return zcerr.New(zcerr.Denied, "%s: permission denied", path).WithHint("uid %d may not read it; see namei -l %s", os.Geteuid(), path)
	case errors.Is(err, unix.ELOOP):
		return zcerr.New(zcerr.Invalid, "%s is a symbolic link that leads back to itself", path)
	case errors.Is(err, unix.ENOTDIR):
		return zcerr.New(zcerr.Invalid, "%s: a file stands where the path has a directory", path)
	}
	return zcerr.New(zcerr.Invalid, "%w", err)
}

// badJSON says what is wrong with a JSON file, in the words of JSON.
func badJSON(path string, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return zcerr.New(zcerr.Invalid, "%s: byte %d: %w", path, syntax.Offset, syntax)
	}
	var typ *json.UnmarshalTypeError
	if !errors.As(err, &typ) {
		return zcerr.New(zcerr.Invalid, "%s: %w", path, err)
	}
	where := path
	if typ.Field != "" {
		where += ": " + typ.Field[strings.LastIndexByte(typ.Field, '.')+1:] // a struct of Go may stand before it
	}
	number, isNumber := strings.CutPrefix(typ.Value, "number ")
	if isNumber { // one that does not fit
		return zcerr.New(zcerr.Invalid, "%s is %s, a whole number in plain digits is wanted", where, number)
	}
	return zcerr.New(zcerr.Invalid, "%s is a JSON %s, %s is wanted", where, strings.Replace(typ.Value, "bool", "boolean", 1), jsonWord(typ.Type))
}

// jsonWord is what JSON has for a type of Go.
func jsonWord(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return jsonWord(t.Elem())
	case reflect.Slice, reflect.Array:
		return "an array"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a number"
}
