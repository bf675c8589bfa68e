package starling

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A LayerName names a layer inside its account.
type LayerName string

var layerPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_-]{0,63}$`)

// Validate reports whether n is a legal layer name: 1–64 of letters, digits, "_" and "-", no "-" first.
func (n LayerName) Validate() error {
	if !layerPattern.MatchString(string(n)) {
		return Errorf(Invalid, "check layer", "%q is no layer name: use 1-64 of letters, digits, \"_\" and \"-\", not \"-\" first", string(n))
	}
	return nil
}

// A LayerRef names one version of a layer of the account that says it. Its text is "name:3".
type LayerRef struct {
	Name    LayerName     `cbor:"1,keyasint"`
	Version VersionNumber `cbor:"2,keyasint"` // from 1
}

// String returns "name:3".
func (r LayerRef) String() string {
	return string(r.Name) + ":" + strconv.FormatUint(uint64(r.Version), 10)
}

// ParseLayerRef reads "name:3".
func ParseLayerRef(text string) (LayerRef, error) {
	name, number, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(number, 10, 32)
	r := LayerRef{LayerName(name), VersionNumber(n)}
	if err != nil || r.Name.Validate() != nil || r.Version == 0 || r.String() != text {
		return LayerRef{}, Errorf(Invalid, "parse layer", "%q is no version of a layer: use NAME:VERSION, such as deps:3", text)
	}
	return r, nil
}

// MarshalText returns the text that people and JSON see.
func (r LayerRef) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is the reverse of MarshalText.
func (r *LayerRef) UnmarshalText(text []byte) (err error) {
	*r, err = ParseLayerRef(string(text))
	return err
}

// A Layer is one immutable version of files that functions of its account share: they see it read-only under /opt.
type Layer struct {
	Account     AccountID     `cbor:"1,keyasint" json:"account"`
	Name        LayerName     `cbor:"2,keyasint" json:"name"`
	Version     VersionNumber `cbor:"3,keyasint" json:"version"` // from 1, in the order of publication
	Code        CodeHash      `cbor:"4,keyasint" json:"code"`
	CodeSize    int64         `cbor:"5,keyasint" json:"codeSize"`                                                // bytes of the zip
	Unpacked    int64         `cbor:"6,keyasint" json:"unpacked"`                                                // bytes of its files in blocks of 4 KiB
	Runtimes    []Runtime     `cbor:"7,keyasint,omitempty" json:"runtimes,omitempty"`                            // for which it is meant; empty for all
	Description string        `cbor:"8,keyasint,omitempty" json:"description,omitempty" doc:"a line for people"` // ≤ 256 bytes
	Created     int64         `cbor:"9,keyasint" json:"created"`                                                 // Unix seconds
}

// Ref names l inside its account.
func (l *Layer) Ref() LayerRef { return LayerRef{l.Name, l.Version} }

// Fits reports whether functions of runtime r may use l.
func (l *Layer) Fits(r Runtime) bool { return len(l.Runtimes) == 0 || slices.Contains(l.Runtimes, r) }

// Validate reports the first field that cannot be, but for Version and Created, which are not the publisher's to say.
func (l *Layer) Validate() error {
	const op = "check layer"
	if err := l.Name.Validate(); err != nil {
		return err
	}
	for i, r := range l.Runtimes {
		if err := r.Validate(); err != nil {
			return err
		}
		if slices.Contains(l.Runtimes[:i], r) {
			return Errorf(Invalid, op, "runtime %s is named twice", r)
		}
	}
	if len(l.Description) > DescriptionMax {
		return Errorf(Invalid, op, "description has %d bytes: use at most %d", len(l.Description), DescriptionMax)
	}
	if err := l.Code.Validate(); err != nil {
		return err
	}
	if l.CodeSize < 1 || l.CodeSize > CodeZipMax || l.Unpacked < 0 {
		return Errorf(TooLarge, op, "the package has %d bytes: use 1-%d", l.CodeSize, CodeZipMax)
	}
	return nil
}

// validateLayers reports what no catalog is needed to see.
func (c Config) validateLayers() error {
	const op = "check function"
	if len(c.Layers) > LayersMax {
		return Errorf(Invalid, op, "%d layers: a function has at most %d", len(c.Layers), LayersMax).With("TooManyLayers")
	}
	for i, l := range c.Layers {
		if err := l.Name.Validate(); err != nil {
			return err
		}
		if l.Version == 0 {
			return Errorf(Invalid, op, "layer %s: name one of its versions, such as %s:1", l.Name, l.Name)
		}
		if slices.ContainsFunc(c.Layers[:i], func(o LayerRef) bool { return o.Name == l.Name }) {
			return Errorf(Invalid, op, "layer %s is named twice: a function has one version of it", l.Name).With("LayerTwice")
		}
	}
	return nil
}
