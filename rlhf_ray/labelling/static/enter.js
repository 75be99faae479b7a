// The token stands behind the # of the link. Take it out of the address bar and send it.
"use strict";

const box = document.getElementById("token");
const tokenOf = (text) => text.trim().split("#").pop();
const link = tokenOf(location.hash);
if (link) {
  history.replaceState(null, "", "/enter");
  box.value = link;
  document.getElementById("enter").submit();
} else {
  box.focus();
  document.getElementById("enter").addEventListener("submit", () => {
    box.value = tokenOf(box.value);
  });
}
