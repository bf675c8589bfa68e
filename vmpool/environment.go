package vmpool

import (
	"fmt"
	"strconv"

	"starling"
)

// taskRoot is where a sandbox sees its code.
const taskRoot = "/var/task"

// A Rooted sandbox has no mounts of its own and says where its code lies; any other shows it at /var/task.
type Rooted interface{ Root() string }

func rootOf(sb Sandbox) string {
	if r, ok := sb.(Rooted); ok && r.Root() != "" {
		return r.Root()
	}
	return taskRoot
}

// environment returns the whole environment of a function: what the platform says, then what the
// developer says. The reserved names were refused at deployment.
func environment(cfg InstanceConfig, sb Sandbox) map[string]string {
	v := cfg.Version
	region := cfg.Region
	if region == "" {
		region = "local"
	}
	env := map[string]string{
		"LANG": "C.UTF-8", "TZ": ":UTC", "HOME": "/tmp", "PATH": "/usr/local/bin:/usr/bin:/bin:/opt/bin",
		"LD_LIBRARY_PATH":                 "/var/task:/var/task/lib:/opt/lib",
		"LAMBDA_TASK_ROOT":                rootOf(sb),
		"LAMBDA_RUNTIME_DIR":              "/var/runtime",
		"AWS_REGION":                      region,
		"AWS_DEFAULT_REGION":              region,
		"AWS_EXECUTION_ENV":               "AWS_Lambda_" + string(v.Config.Runtime),
		"AWS_LAMBDA_INITIALIZATION_TYPE":  "on-demand",
		"AWS_LAMBDA_FUNCTION_NAME":        string(v.Function.Name),
		"AWS_LAMBDA_FUNCTION_VERSION":     versionWord(v.Number),
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE": strconv.Itoa(v.Config.MemoryMiB),
		"AWS_LAMBDA_LOG_GROUP_NAME":       "/starling/" + string(v.Function.Account) + "/" + string(v.Function.Name),
		"AWS_LAMBDA_LOG_STREAM_NAME":      cfg.ID.String(),
		// A Go runtime sees all cores of the host and would start as many threads.
		"GOMAXPROCS": strconv.Itoa((v.Config.MemoryMiB + starling.MemoryOfCPU - 1) / starling.MemoryOfCPU),
	}
	for k, x := range v.Config.Env {
		env[k] = x
	}
	env["_HANDLER"] = v.Config.Handler
	if v.Config.Concurrency > 1 {
		env["AWS_LAMBDA_MAX_CONCURRENCY"] = strconv.Itoa(v.Config.Concurrency)
	}
	if ln := sb.Listener(); ln != nil {
		env["AWS_LAMBDA_RUNTIME_API"] = ln.Addr().String()
	}
	return env
}

// functionARN names the version in the form that Lambda's clients take apart.
func functionARN(region string, v *starling.Version) string {
	if region == "" {
		region = "local"
	}
	arn := fmt.Sprintf("arn:aws:lambda:%s:%s:function:%s", region, v.Function.Account, v.Function.Name)
	if v.Number != starling.Latest {
		arn += ":" + v.Number.String()
	}
	return arn
}
