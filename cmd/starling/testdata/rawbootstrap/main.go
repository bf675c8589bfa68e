// Command rawbootstrap speaks the Runtime API without a library, and wrongly when the payload asks for it.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"
)

var base = "http://" + os.Getenv("AWS_LAMBDA_RUNTIME_API") + "/2018-06-01/runtime"

func main() {
	var before int // status of what was tried last
	for {
		res, err := http.Get(base + "/invocation/next")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(9)
		}
		id := res.Header.Get("Lambda-Runtime-Aws-Request-Id")
		var in struct{ Do string }
		body, _ := io.ReadAll(res.Body)
		res.Body.Close()
		json.Unmarshal(body, &in)
		fmt.Println("do", in.Do)
		before = do(in.Do, base+"/invocation/"+id, before)
	}
}

func do(what, path string, before int) int {
	answer := fmt.Appendf(nil, `{"before":%d}`, before)
	switch what {
	case "twice":
		post(path+"/response", answer)
		return post(path+"/response", []byte(`"a second answer"`))
	case "wrong-id":
		status := post(base+"/invocation/00000000-0000-4000-8000-000000000000/response", answer)
		post(path+"/response", answer)
		return status
	case "late":
		time.Sleep(1500 * time.Millisecond)
		return post(path+"/response", answer)
	case "big":
		return post(path+"/response", make([]byte, 7<<20))
	case "error":
		return post(path+"/error", []byte(`{"errorType":"OrderError","errorMessage":"no such order"}`))
	case "half":
		raw("POST " + path[len("http://")+len(os.Getenv("AWS_LAMBDA_RUNTIME_API")):] + "/response HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
		return 0
	case "garbage":
		raw("\x00\x01\x02 this is no HTTP\r\n\r\n")
		os.Exit(3)
	case "silent":
		return 0
	}
	return post(path+"/response", answer)
}

func post(url string, body []byte) int {
	res, err := http.Post(url, "application/json", bytes.NewReader(body))
	if err != nil {
		return -1
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return res.StatusCode
}

func raw(text string) {
	c, err := net.Dial("tcp", os.Getenv("AWS_LAMBDA_RUNTIME_API"))
	if err != nil {
		return
	}
	io.WriteString(c, text)
	c.Close()
}
