package protocol

import "time"

// Uplinks is how one gateway is plugged into its networks, for operators.
type Uplinks struct {
	File    string   `json:"file,omitempty"`
	Refused string   `json:"refused,omitempty"` // why the file was not taken when it was last read again: what is shown is of the one before
	Uplinks []Uplink `json:"uplinks"`           // in the order of names
}

// An Uplink is how a gateway is plugged into one network.
type Uplink struct {
	Network   string    `json:"network"` // account/name or internet, as the file has it
	How       string    `json:"how"`     // such as "bridge br-db"
	State     string    `json:"state"`   // "plugged in", "no carrier", "failed"
	Reason    string    `json:"reason,omitempty"`
	Note      string    `json:"note,omitempty"` // what the catalog says against it
	Namespace string    `json:"namespace,omitempty"`
	Addresses []string  `json:"addresses,omitempty"`
	Since     time.Time `json:"since"`
}
