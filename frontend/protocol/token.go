package protocol

// A TokenSpec asks for a join token.
type TokenSpec struct {
	Roles       string `json:"roles,omitempty" doc:"the most the joiner may be, such as manager,host; all when empty"`
	LifeSeconds int64  `json:"lifeSeconds,omitempty" minimum:"0" maximum:"604800" doc:"how long it is good; 3600 when 0"`
}

// A Token lets one node join once. It is shown here and stored nowhere.
type Token struct {
	Token   string `json:"token" doc:"secret and fingerprint of the cluster's CA"`
	Roles   string `json:"roles"`
	Expires int64  `json:"expires" doc:"Unix seconds"`
}
