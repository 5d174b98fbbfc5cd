// Dialogs: a question before much is deleted, and one picture, large.

const sure = document.querySelector("#sure");
const large = document.querySelector("#large");

/** Whether the answer to a question is that all shall be deleted; Esc keeps them. */
export function isSure(question) {
  sure.querySelector("p").textContent = question;
  sure.returnValue = "";
  sure.showModal();
  return new Promise((resolve) => {
    sure.addEventListener("close", () => resolve(sure.returnValue === "delete"), { once: true });
  });
}

/** Shows a picture as large as the window has room for. */
export function showLarge({ src, alt, className }) {
  Object.assign(large.querySelector("img"), { src, alt, className });
  large.showModal();
}

large.addEventListener("click", ({ target }) => {
  if (!target.closest("button")) large.close();
});
large.addEventListener("close", () => large.querySelector("img").removeAttribute("src"));
