package scale

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"starling"
)

// Names returns the names of the settings, as files and sweeps write them: "worth", "downAfter".
func (a *Adaptive) Names() (names []string) {
	for f := range reflect.TypeFor[Adaptive]().Fields() {
		names = append(names, strings.ToLower(f.Name[:1])+f.Name[1:])
	}
	return names
}

// field finds a setting by its name; it is invalid for another name.
func (a *Adaptive) field(name string) reflect.Value {
	if name == "" || strings.ToUpper(name[:1]) == name[:1] {
		return reflect.Value{}
	}
	return reflect.ValueOf(a).Elem().FieldByName(strings.ToUpper(name[:1]) + name[1:])
}

// Text returns a setting as Set reads it; "" for a name that is none.
func (a *Adaptive) Text(name string) string {
	switch v := a.field(name); {
	case !v.IsValid():
		return ""
	case v.Type() == reflect.TypeFor[time.Duration]():
		return time.Duration(v.Int()).String()
	default:
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	}
}

// Set changes one setting: a duration such as "20m", or a number. The error, of kind Invalid, names what is wrong; what
// the value must be for the policy to work is for Validate.
func (a *Adaptive) Set(name, text string) error {
	const op = "set scaling"
	v := a.field(name)
	if !v.IsValid() {
		return starling.Errorf(starling.Invalid, op, "there is no setting %q: use %s", name, strings.Join(a.Names(), ", "))
	}
	if v.Type() == reflect.TypeFor[time.Duration]() {
		d, err := time.ParseDuration(text)
		if err != nil {
			return starling.Errorf(starling.Invalid, op, "%s: %q is no duration such as 90s or 20m", name, text)
		}
		v.SetInt(int64(d))
		return nil
	}
	x, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return starling.Errorf(starling.Invalid, op, "%s: %q is no number", name, text)
	}
	v.SetFloat(x)
	return nil
}
