// Package apiserver is a stand-in for a Kubernetes API server, for tests of programs that talk to one: it keeps objects in
// memory, and answers discovery, get, list, watch, create, update and delete. As the real one it refuses an update of a
// version that isn't the newest, which is what a Lease's compare-and-swap rests on.
package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

// resources are those that it knows, by the path of their group and version.
var resources = map[string][]metav1.APIResource{
	"/api/v1": {
		{Name: "configmaps", Kind: "ConfigMap", Namespaced: true, Verbs: verbs},
		{Name: "pods", Kind: "Pod", Namespaced: true, Verbs: verbs},
		{Name: "events", Kind: "Event", Namespaced: true, Verbs: verbs},
	},
	"/apis/coordination.k8s.io/v1": {{Name: "leases", Kind: "Lease", Namespaced: true, Verbs: verbs}},
	"/apis/events.k8s.io/v1":       {{Name: "events", Kind: "Event", Namespaced: true, Verbs: verbs}},
}

var verbs = metav1.Verbs{"get", "list", "watch", "create", "update", "patch", "delete"}

// Object is one, as in its JSON.
type Object = map[string]any

// Server is a running one.
type Server struct {
	*httptest.Server

	mu      sync.Mutex
	version int64
	objects map[string]Object // by path
	changes []change
	changed chan struct{}
}

type change struct {
	kind   string // ADDED, MODIFIED, DELETED
	path   string
	object Object
}

// New starts one, which is closed when the test ends.
func New(t *testing.T) *Server {
	t.Helper()
	s := &Server{objects: map[string]Object{}, changed: make(chan struct{}), version: 1}
	s.Server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	return s
}

// Kubeconfig writes a file for clients of it, and returns its path.
func (s *Server) Kubeconfig(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\ncurrent-context: c\n", s.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Put creates or replaces the object at a path such as /api/v1/namespaces/default/configmaps/a.
func (s *Server) Put(path string, object Object) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(path, object)
}

// All are the objects whose path has this text.
func (s *Server) All(text string) []Object {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []Object
	for _, path := range s.paths() {
		if strings.Contains(path, text) {
			all = append(all, s.objects[path])
		}
	}
	return all
}

func (s *Server) paths() []string {
	var paths []string
	for path := range s.objects {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	return paths
}

func metadata(object Object) Object {
	m, ok := object["metadata"].(map[string]any)
	if !ok {
		m = Object{}
		object["metadata"] = m
	}
	return m
}

func (s *Server) put(path string, object Object) {
	kind := "ADDED"
	if s.objects[path] != nil {
		kind = "MODIFIED"
	}
	s.version++
	collection, name := split(path)
	object["kind"], object["apiVersion"] = kindOf(collection)
	m := metadata(object)
	m["name"] = name
	if _, after, ok := strings.Cut(collection, "/namespaces/"); ok {
		m["namespace"], _, _ = strings.Cut(after, "/")
	}
	m["resourceVersion"] = strconv.FormatInt(s.version, 10)
	if m["uid"] == nil {
		m["uid"] = fmt.Sprintf("00000000-0000-0000-0000-%012d", s.version)
	}
	s.objects[path] = object
	s.note(change{kind, path, object})
}

func (s *Server) note(c change) {
	s.changes = append(s.changes, c)
	close(s.changed)
	s.changed = make(chan struct{})
}

func answer(w http.ResponseWriter, code int, object any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(object) // the client is gone
}

func refuse(w http.ResponseWriter, code int, reason metav1.StatusReason, message string) {
	answer(w, code, metav1.Status{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(code), Reason: reason, Message: message, //nolint:gosec // a status code
	})
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	path := strings.TrimSuffix(r.URL.Path, "/")
	if s.discover(w, path) {
		return
	}
	collection, name := split(path)
	if collection == "" {
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, "no such resource")
		return
	}
	switch {
	case r.Method == http.MethodGet && name == "" && r.URL.Query().Get("watch") != "":
		s.watch(w, r, collection)
	case r.Method == http.MethodGet && name == "":
		s.list(w, collection)
	case r.Method == http.MethodGet:
		s.mu.Lock()
		defer s.mu.Unlock()
		if object := s.objects[path]; object != nil {
			answer(w, http.StatusOK, object)
			return
		}
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, name+" not found")
	case r.Method == http.MethodDelete:
		s.mu.Lock()
		defer s.mu.Unlock()
		object := s.objects[path]
		if object == nil {
			refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, name+" not found")
			return
		}
		delete(s.objects, path)
		s.note(change{"DELETED", path, object})
		answer(w, http.StatusOK, metav1.Status{Status: metav1.StatusSuccess})
	case r.Method == http.MethodPost, r.Method == http.MethodPut:
		s.write(w, r, path, r.Method == http.MethodPost)
	default:
		refuse(w, http.StatusMethodNotAllowed, metav1.StatusReasonMethodNotAllowed, r.Method)
	}
}

// discover answers what there is.
func (s *Server) discover(w http.ResponseWriter, path string) bool {
	if list, ok := resources[path]; ok {
		groupVersion := strings.TrimPrefix(strings.TrimPrefix(path, "/apis/"), "/api/")
		answer(w, http.StatusOK, metav1.APIResourceList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, GroupVersion: groupVersion, APIResources: list})
		return true
	}
	switch path {
	case "/api":
		answer(w, http.StatusOK, metav1.APIVersions{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIVersions"}, Versions: []string{"v1"}})
	case "/apis":
		groups := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIGroupList"}}
		for path := range resources {
			if group, version, ok := strings.Cut(strings.TrimPrefix(path, "/apis/"), "/"); ok && strings.HasPrefix(path, "/apis/") {
				v := metav1.GroupVersionForDiscovery{GroupVersion: group + "/" + version, Version: version}
				groups.Groups = append(groups.Groups, metav1.APIGroup{Name: group, Versions: []metav1.GroupVersionForDiscovery{v}, PreferredVersion: v})
			}
		}
		answer(w, http.StatusOK, groups)
	case "/readyz":
		answer(w, http.StatusOK, "ok")
	case "/version":
		answer(w, http.StatusOK, map[string]string{"major": "1", "minor": "37", "gitVersion": "v1.37.0"})
	default:
		return false
	}
	return true
}

// split tells a collection's path from an object's name.
func split(path string) (collection, name string) {
	for group, list := range resources {
		rest, ok := strings.CutPrefix(path, group+"/")
		if !ok {
			continue
		}
		parts := strings.Split(rest, "/")
		at := 0
		if parts[0] == "namespaces" && len(parts) > 2 {
			at = 2
		}
		for _, resource := range list {
			if parts[at] != resource.Name || len(parts) > at+2 {
				continue
			}
			if len(parts) == at+2 {
				name = parts[at+1]
			}
			return strings.TrimSuffix(path, "/"+name), name
		}
	}
	return "", ""
}

// within reports whether an object is of a collection, also of one over all namespaces.
func within(collection, path string) bool {
	of, _ := split(path)
	if of == collection {
		return true
	}
	group := collection[:strings.LastIndex(collection, "/")]
	return !strings.Contains(collection, "/namespaces/") && strings.HasPrefix(of, group+"/namespaces/") && strings.HasSuffix(of, collection[len(group):])
}

// kindOf is the kind and version of a collection's objects.
func kindOf(collection string) (kind, apiVersion string) {
	for group, list := range resources {
		for _, resource := range list {
			if strings.HasPrefix(collection, group+"/") && strings.HasSuffix(collection, "/"+resource.Name) {
				kind, apiVersion = resource.Kind, strings.TrimPrefix(strings.TrimPrefix(group, "/apis/"), "/api/")
			}
		}
	}
	return kind, apiVersion
}

func (s *Server) list(w http.ResponseWriter, collection string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	items := []Object{}
	for _, path := range s.paths() {
		if within(collection, path) {
			items = append(items, s.objects[path])
		}
	}
	kind, apiVersion := kindOf(collection)
	answer(w, http.StatusOK, Object{
		"kind": kind + "List", "apiVersion": apiVersion, "items": items,
		"metadata": Object{"resourceVersion": strconv.FormatInt(s.version, 10)},
	})
}

func (s *Server) watch(w http.ResponseWriter, r *http.Request, collection string) {
	flusher, ok := w.(http.Flusher)
	if !ok {
		refuse(w, http.StatusInternalServerError, metav1.StatusReasonInternalError, "no streaming")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	encoder := json.NewEncoder(w)
	send := func(kind string, object Object) {
		_ = encoder.Encode(Object{"type": kind, "object": object}) // the request's context ends as well
	}
	s.mu.Lock()
	next := 0
	if r.URL.Query().Get("sendInitialEvents") == "true" {
		for _, path := range s.paths() {
			if within(collection, path) {
				send("ADDED", s.objects[path])
			}
		}
		next = len(s.changes)
		kind, apiVersion := kindOf(collection)
		send("BOOKMARK", Object{"kind": kind, "apiVersion": apiVersion, "metadata": Object{
			"resourceVersion": strconv.FormatInt(s.version, 10),
			"annotations":     Object{metav1.InitialEventsAnnotationKey: "true"},
		}})
	} else if since, err := strconv.ParseInt(r.URL.Query().Get("resourceVersion"), 10, 64); err == nil {
		for next < len(s.changes) && versionOf(s.changes[next].object) <= since {
			next++
		}
	}
	for {
		for ; next < len(s.changes); next++ {
			if c := s.changes[next]; within(collection, c.path) {
				send(c.kind, c.object)
			}
		}
		changed := s.changed
		s.mu.Unlock()
		flusher.Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		s.mu.Lock()
	}
}

func versionOf(object Object) int64 {
	text, _ := metadata(object)["resourceVersion"].(string)
	version, _ := strconv.ParseInt(text, 10, 64) // 0: older than all
	return version
}

func (s *Server) write(w http.ResponseWriter, r *http.Request, path string, create bool) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	// JSON or Protobuf, as the client likes.
	typed, _, err := scheme.Codecs.UniversalDeserializer().Decode(body, nil, nil)
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	accessor, err := meta.Accessor(typed)
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	if create {
		name := accessor.GetName()
		if name == "" {
			s.mu.Lock()
			name = accessor.GetGenerateName() + strconv.FormatInt(s.version, 10)
			s.mu.Unlock()
		}
		path += "/" + name
	}
	text, err := json.Marshal(typed)
	if err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	var object Object
	if err := json.Unmarshal(text, &object); err != nil {
		refuse(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	_, name := split(path)
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.objects[path]
	switch {
	case create && old != nil:
		refuse(w, http.StatusConflict, metav1.StatusReasonAlreadyExists, name+" already exists")
		return
	case !create && old == nil:
		refuse(w, http.StatusNotFound, metav1.StatusReasonNotFound, name+" not found")
		return
	case !create && accessor.GetResourceVersion() != "" && accessor.GetResourceVersion() != metadata(old)["resourceVersion"]:
		refuse(w, http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified; please apply your changes to the latest version and try again")
		return
	}
	s.put(path, object)
	answer(w, http.StatusOK, object)
}
